"""Ask a served model with the stock `openai` client (pip install openai), streaming the answer.

llmctl serve demo.sft --store demo &
python examples/ask.py 'What does `os.path.join` do?'
"""

import sys

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
model = client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": " ".join(sys.argv[1:]) or "What does `len` do?"}],
    max_tokens=60,
    temperature=0,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
