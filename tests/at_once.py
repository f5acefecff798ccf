"""Run pytest on several lists of folders at once, a process for each: at_once.py [OPTION...] "FOLDERS" "FOLDERS"...

One process waits for Spark and for ranks half of its time. The first list's output is shown as it comes, that of the
others when they have ended. The exit status is that of the first process that failed. Processes, not pytest-xdist:
no test has to know of it, and each list has one Spark session.
"""

import subprocess
import sys
import tempfile
from contextlib import ExitStack


def main(words: list[str]) -> int:
    options = [word for word in words if word.startswith("-")]
    lists = [word.split() for word in words if not word.startswith("-") and word.strip()]
    with ExitStack() as at_the_end:
        running = []
        for number, folders in enumerate(lists):
            output = at_the_end.enter_context(tempfile.TemporaryFile()) if number else None
            command = [sys.executable, "-m", "pytest", *options, *folders]
            running.append((folders, output, subprocess.Popen(command, stdout=output, stderr=output)))
            at_the_end.callback(running[-1][2].terminate)
        for folders, output, process in running:
            process.wait()
            if output is not None:
                output.seek(0)
                print(f"== pytest {' '.join(folders)}", flush=True)
                sys.stdout.buffer.write(output.read())
                sys.stdout.flush()
    return next((process.returncode for *_, process in running if process.returncode), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
