"""What `chaos.py` left behind, compared with what must be there."""

import collections
import datetime

import chaos_workload

# The task is done or another's; interrupted; the lease lost; killed.
EXIT_CODES = (0, 130, 30, -9)
# From a launch to its claim: another's lease may be watched first, and a table waited for.
CLAIM_S_MAX = 60


def judge(chaos, mission):
    """Returns the figures of a run that is over, "failures" among them: one sentence each."""
    chaos.look()
    keys = chaos.cloud.keys()
    uploads = [upload["Key"] for upload in chaos.cloud.uploads_in_progress()]
    # What is killed cannot tidy up, and an upload that began twice by one request has an id that its client never heard:
    # these are the bucket's lifecycle rule's to end.
    bucket = f"/{chaos.cloud.result_bucket}/"
    explained = {f"rslt_{run.src}" for run in chaos.runs if run.killed}
    explained |= {path.removeprefix(bucket) for path in chaos.events.begun_twice}
    if not explained.issuperset(uploads):
        chaos.failures.append(f"multipart uploads are left without a fault that explains it: {set(uploads) - explained}")
    # Not a failure: what a dead attempt saved and no row names is the bucket's lifecycle rule's to remove.
    checkpoints = [key for key in keys if key.startswith("checkpoints/")]
    chaos.events.add("checkpoints left", keys=checkpoints)
    counts = sorted(chaos.events.counts.items())
    return {
        "seed": chaos.options.seed,
        "tasks": chaos.options.tasks,
        "launches": len(chaos.runs),
        **_attempts(chaos),
        "faults": {kind: count for kind, count in counts if kind.startswith(("fault", "proxy", "outage"))},
        "proxy_requests": chaos.proxy.requests,
        "met_by_outages": dict(sorted(chaos.events.outages.items())),
        "results_checked_byte_by_byte": _results(chaos, keys),
        **_mission(chaos, mission),
        **_publishers(chaos),
        **_instances(chaos),
        **_ends(chaos),
        "uploads_left": len(uploads),
        "checkpoint_objects_left": len(checkpoints),
        "resumed_attempts": sum(b"resumed at" in chaos.cloud.object(key) for key in keys if key.startswith("logs/")),
        "failures": chaos.failures,
    }


def _results(chaos, keys):
    """Every task has the one result that it must have, and the row says so; returns how many have."""
    checked = 0
    for src, content in chaos.inputs.items():
        row = chaos.rows[src]
        written = row.get("resultETag"), row.get("resultBytes")
        got = chaos.cloud.object(f"rslt_{src}")
        if row.get("state") != "done":
            wrong = f"{row.get('state')}, verdict {row.get('verdict')}"
        elif got is None:
            wrong = "done, but its result is lost"
        elif got != chaos_workload.expected(content):
            wrong = f"its result is wrong: {len(got)} bytes, {got[:70]!r}"
        elif written != (chaos.cloud.object_head(f"rslt_{src}")["ETag"], len(got)):
            wrong = f"the row has ETag and bytes {written}"
        elif row.get("strIndiProgress") != "100%" or row.get("rsltFilename") is None:
            wrong = f"done, but the row says {row.get('strIndiProgress')}, {row.get('rsltFilename')}"
        else:
            checked += 1
            continue
        chaos.failures.append(f"{src}: {wrong}")
    extra = [key for key in keys if key.startswith("rslt_") and key.removeprefix("rslt_") not in chaos.inputs]
    if extra:
        chaos.failures.append(f"results of no task: {extra[:5]}")
    return checked


def _attempts(chaos):
    """How attempts ended: none because of an outage, and each at the time of its own machine's clock."""
    rows = chaos.rows.values()
    takeovers = 0
    for row in rows:
        entries = [entry for entry in row.get("history", []) if entry["verdict"] != "lost"]
        # The history keeps ten.
        takeovers += max(row.get("attempt", 0) - len(entries), 0) if row.get("attempt", 0) <= 10 else 0
    verdicts = collections.Counter(entry["verdict"] for row in rows for entry in row.get("history", []))
    if verdicts["infra"]:
        chaos.failures.append(f"{verdicts['infra']} attempts were lost to outages that were shorter than a lease")
    return {
        "attempts": sum(row.get("attempt", 0) for row in rows),
        "takeovers": takeovers,
        "verdicts": dict(verdicts),
        "attempts_lost_to_outages": verdicts["infra"],
        "clocks_apart_s": _clocks_apart_s(chaos),
    }


def _clocks_apart_s(chaos):
    """How far apart the clocks of two machines were that wrote to rows."""
    runs = {run.instance: run for run in chaos.runs}
    shown = {}
    for src, row in chaos.rows.items():
        for entry in row.get("history", []):
            run = runs.get(entry["instance"])
            if run is None or not entry["started"]:
                continue
            started = datetime.datetime.fromisoformat(entry["started"]).timestamp()
            late_s = started - run.began_clock - run.clock_s
            if not -2 < late_s < CLAIM_S_MAX:
                chaos.failures.append(f"{src}: attempt {entry['attempt']} began {late_s:.0f} s after its launch")
            shown[run.instance] = run.clock_s
    return max(shown.values()) - min(shown.values()) if shown else 0


def _mission(chaos, mission):
    """Each task is counted once, and the mission's row says so."""
    tasks = chaos.options.tasks
    tally = chaos.cloud.tally(mission)
    if tally != (tasks, 0):
        chaos.failures.append(f"the tally is {tally}, not {(tasks, 0)}")
    row = chaos.cloud.mission(mission)
    counters = {name: row.get(name) for name in ("transNumber", "transOK", "transFailed", "notifyEmail")}
    if (row.get("notifyEmail"), row.get("transOK"), row.get("transFailed", 0)) != ("Yes", tasks, 0):
        chaos.failures.append(f"the mission's row says {counters}")
    results = [entry for entry in row.get("rsltList", []) if entry != "rsltList"]
    if len(results) != tasks or len(set(results)) != tasks:
        chaos.failures.append(f"rsltList has {len(results)} entries, {len(set(results))} of them different")
    return {"tally": {"transOK": tally[0], "transFailed": tally[1]}, "mission": counters}


def _publishers(chaos):
    """The notification was sent once, and again only for a reason."""
    sent = len(chaos.cloud.notifications())
    deaths = list(chaos.publisher_deaths.values())
    # One that dies before its message has left explains no second message; one that dies by chance may have sent it.
    doubled = [kind for kind in chaos.events.publishes if kind in ("proxy lose", "proxy repeat", "proxy delay")]
    explained = 1 + deaths.count("after") + deaths.count("by chance") + len(doubled)
    if not 1 <= sent <= explained:
        chaos.failures.append(f"{sent} notifications; the faults explain 1 to {explained}")
    if chaos.proxy.on_publish:
        chaos.failures.append(f"the publisher's fault, {chaos.publisher_fault}, met no publisher: this run shows less")
    return {
        "notifications": sent,
        "publisher_fault": chaos.publisher_fault,
        "publisher_deaths_by_plan": deaths.count("before") + deaths.count("after"),
        "publisher_deaths_by_chance": deaths.count("by chance"),
        "publish_faults_in_proxy": chaos.events.publishes,
    }


def _instances(chaos):
    """A node that ended by itself has ended its machine."""
    ids = [run.instance for run in chaos.runs]
    states = {}
    for start in range(0, len(ids), 100):
        answer = chaos.cloud.clients.ec2.describe_instances(InstanceIds=ids[start : start + 100])
        for reservation in answer["Reservations"]:
            for instance in reservation["Instances"]:
                states[instance["InstanceId"]] = instance["State"]["Name"]
    gone = ("shutting-down", "terminated")
    left = [run for run in chaos.runs if not run.killed and states[run.instance] not in gone]
    for run in left:
        how = f"ended by itself ({run.exit_code}, {run.node.folder.name})"
        chaos.failures.append(f"{run.instance} for {run.src} {how}, and its instance is left running")
    ended = ("machine vanished", "machine ended by the driver", "machine ended by the sweep")
    return {
        "instances_left_by_nodes": len(left),
        "instances_ended_by_driver": sum(chaos.events.counts[kind] for kind in ended),
    }


def _ends(chaos):
    """How nodes ended: as their faults explain."""
    for run in chaos.runs:
        if run.exit_code not in EXIT_CODES:
            chaos.failures.append(f"{run.node.folder.name} for {run.src} ended with exit code {run.exit_code}")
    lost = [run for run in chaos.runs if run.exit_code == 30 and run.frozen_since is None]
    for run in lost:
        chaos.failures.append(f"{run.node.folder.name} for {run.src} was not frozen, and lost its lease")
    codes = collections.Counter(run.exit_code for run in chaos.runs)
    return {
        "exit_codes": {str(code): count for code, count in sorted(codes.items())},
        "leases_lost_without_a_freeze": len(lost),
    }
