"""How fast is a propagation, what does it survive, does it leave labelers' answers quick, does a long plan stay small?

    python -m benchmarks.propagation rate [--tasks 500] [--alone 60] [--json FILE]
    python -m benchmarks.propagation faults [--tasks 200] [--only NAME ...] [--json FILE]
    python -m benchmarks.propagation plan [--tasks 1000 100000] [--json FILE]

What each does is said in propagation_rate.py, propagation_faults.py and propagation_plan.py.
"""

import argparse
import json
from pathlib import Path

from benchmarks.propagation_faults import FAULTS, measure_faults
from benchmarks.propagation_plan import measure_plan
from benchmarks.propagation_rate import measure_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rate = commands.add_parser("rate")
    rate.add_argument("--tasks", type=int, default=500)
    rate.add_argument("--alone", type=int, default=60, help="images for the pipeline alone")
    faults = commands.add_parser("faults")
    faults.add_argument("--tasks", type=int, default=200)
    faults.add_argument("--only", nargs="+", choices=list(FAULTS), help="some of the faults")
    plan = commands.add_parser("plan")
    plan.add_argument("--tasks", type=int, nargs="+", default=[1000, 100_000])
    for each in (rate, faults, plan):
        each.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "rate":
        figures = measure_rate(arguments.tasks, arguments.alone)
    elif arguments.command == "faults":
        figures = measure_faults(arguments.tasks, arguments.only or list(FAULTS))
    else:
        figures = {str(count): measure_plan(count) for count in arguments.tasks}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
