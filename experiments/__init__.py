"""Speed and memory, measured side by side. `python -m experiments --help`; README.md says how."""
