"""Run every example on its quick setting, each in a process of its own, and say which failed and how long each took.

    python examples/run_all.py [NAME ...] [--limit SECONDS] [--full]

Ends with status 1 if one failed or ran out of time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("names", nargs="*", help="examples to run, without .py; all of them by default")
parser.add_argument("--limit", type=float, default=300, help="seconds that one may take (default: %(default)s)")
parser.add_argument("--full", action="store_true", help="not the quick setting, but what a reader would run")
options = parser.parse_args()

known = {path.stem: path for path in sorted(HERE.glob("*.py")) if path != Path(__file__).resolve()}
if unknown := sorted(set(options.names) - set(known)):
    parser.error(f"no example {', '.join(unknown)}; there are {', '.join(known)}")
environment = {**os.environ, "MPLBACKEND": "Agg", "SKL_TRANSFORMALY_QUICK": "0" if options.full else "1"}

failed = []
begin = time.perf_counter()
for name in options.names or known:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:  # what an example writes goes with it
        try:
            ended = subprocess.run(
                [sys.executable, known[name]],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=options.limit,
            )
            outcome, output = ("ok" if ended.returncode == 0 else f"status {ended.returncode}"), ended.stdout
        except subprocess.TimeoutExpired as stopped:
            outcome, output = f"stopped at {options.limit:g} s", stopped.stdout or b""
    print(f"{name:<24} {time.perf_counter() - start:>6.1f} s  {outcome}", flush=True)
    if outcome != "ok":
        failed.append(name)
        print(output.decode(errors="replace"), flush=True)
total = f"{len(options.names or known)} examples, {time.perf_counter() - begin:.0f} s"
print(f"{total}; failed: {', '.join(failed)}" if failed else f"{total}, all well")
sys.exit(bool(failed))
