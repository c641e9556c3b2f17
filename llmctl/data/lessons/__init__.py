from llmctl.data.lessons.chats import run_chats
from llmctl.data.lessons.preferences import run_preferences
from llmctl.data.lessons.quiz import run_quiz

__all__ = ["run_chats", "run_preferences", "run_quiz"]
