import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # synthetic_run is imported here, and by name in ranks
