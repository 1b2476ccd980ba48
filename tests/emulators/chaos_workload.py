"""What the tasks of `chaos.py` do: steps of a digest, with a checkpoint and a line of progress after each.

Its input says in its first line how long that takes and how large the result is, so that `expected` can work the same
result out elsewhere.
"""

import hashlib
import json
import os
import signal
import sys
import time


def _next(digest, content, step):
    return hashlib.sha256(digest.encode() + content + str(step).encode()).hexdigest()


def _result(digest, spec):
    return (digest + "\n").encode() * (spec["bytes"] // 65)


def expected(content):
    """The result of an input."""
    spec = json.loads(content.split(b"\n", 1)[0])
    digest = ""
    for step in range(spec["steps"]):
        digest = _next(digest, content, step)
    return _result(digest, spec)


def main():
    """Does one task, from its checkpoint if there is one."""
    env = os.environ
    with open(env["LIGHTHPC_INPUT"], "rb") as file:
        content = file.read()
    spec = json.loads(content.split(b"\n", 1)[0])
    signal.signal(signal.SIGTERM, signal.SIG_IGN if spec["deaf"] else lambda *_: sys.exit(143))
    state = os.path.join(env["LIGHTHPC_CHECKPOINT_DIR"], "state.json")
    step, digest = 0, ""
    if env["LIGHTHPC_RESUMED"] == "1":
        with open(state) as file:
            step, digest = json.load(file)
        print("resumed at", step, flush=True)
    while step < spec["steps"]:
        time.sleep(spec["seconds"] / spec["steps"])
        digest = _next(digest, content, step)
        step += 1
        with open(state + ".new", "w") as file:
            json.dump([step, digest], file)
        os.replace(state + ".new", state)
        with open(env["LIGHTHPC_PROGRESS"], "a") as file:
            file.write(f"{100 * step // spec['steps']} step {step}\n")
        print("step", step, digest, flush=True)
    with open(env["LIGHTHPC_OUTPUT"], "wb") as file:
        file.write(_result(digest, spec))


if __name__ == "__main__":
    main()
