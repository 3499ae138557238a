"""Keep the outcome of a run of `ctrnn train` as one JSON file in experiments/results/.

    python experiments/record.py runs/RUN "the command that made it"

`ctrnn reproduce` keeps its runs itself, in a folder for each experiment.
"""

import sys
from pathlib import Path

from ctrnn_assembly.training.run import read_summary
from ctrnn_cli.results import keep_result

RESULTS = Path(__file__).parent / "results"


def record(run: Path, command: str) -> Path:
    result = read_summary(run) | {"command": command}
    path = RESULTS / f"{result['date']}-{run.name}.json"
    keep_result(path, result)
    return path


if __name__ == "__main__":
    print(record(Path(sys.argv[1]), sys.argv[2]))
