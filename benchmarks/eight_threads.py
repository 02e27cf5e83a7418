"""Does the service stay right, small and quick under eight threads of mixed requests?

    python -m benchmarks.eight_threads [--seconds 120] [--json FILE]

The load is `testing.mixed_load`, which says what the threads do. Fails if an answer differs from the known one, if
memory grows, or if a batch call began while an interactive one waited.
"""

import argparse
import json
import sys
from pathlib import Path

from testing.mixed_load import run_mixed_load


def main() -> int:
    """0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = run_mixed_load(options.seconds)
    early_mb, late_mb = report.memory_mb
    print(f"answers {dict(report.answers)}, wrong {len(report.wrong)} {report.wrong[:3]}")
    print(f"interactive calls overtaken by a batch or a prefetch: {report.overtaken}")
    print(
        f"longest wait of an interactive call {report.longest_wait_s:.2f} s, longest call {report.longest_call_s:.2f} s"
    )
    print(f"resident memory {early_mb:.0f} MB after a quarter of the time, {late_mb:.0f} MB at the end")
    print(f"prefetch {report.prefetched}")
    if options.json:
        options.json.write_text(json.dumps({**vars(report), "answers": dict(report.answers)}, indent=1) + "\n")
    return int(bool(report.wrong) or report.overtaken > 0 or late_mb > early_mb + 40)


if __name__ == "__main__":
    sys.exit(main())
