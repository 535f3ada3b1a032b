"""Train on your own data: `python examples/train_on_own_data.py clicks.csv registry`.

Reads a CSV file with the columns user, item, time (ISO 8601), title, categories (a;b), writes what
`driftline train` reads, trains, and prints how good the model is on the newest tenth, beside
counters. The release lies in the registry then; workers rank with it once it is announced
(`driftline releases announce --registry registry`). More arguments go to `driftline train`.
"""

import csv
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

source, registry = Path(sys.argv[1]), Path(sys.argv[2])
events = source.with_suffix(".jsonl")
with source.open(newline="") as rows, events.open("w") as lines:
    for row in csv.DictReader(rows):
        event = {
            "user": row["user"],
            "item": row["item"],
            "time": datetime.fromisoformat(row["time"]).timestamp(),
            "type": "click",
            "title": row["title"],
            "categories": row["categories"].split(";"),
        }
        lines.write(json.dumps(event) + "\n")

driftline = Path(sys.executable).with_name("driftline")  # of the same virtual environment
command = [driftline, "train", "--data", events, "--format", "jsonl", "--registry", registry]
sys.exit(subprocess.run([*command, *sys.argv[3:]]).returncode)
