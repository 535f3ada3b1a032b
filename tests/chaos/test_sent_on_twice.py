"""A worker that dies after it has sent a misrouted record on sends it on again: it counts once."""

from __future__ import annotations

import json
import signal

from engine import Engine, driftline, event

#: Rows remember no ids: nothing but where an original lay tells its copies apart.
NO_RING = {"DRIFTLINE_DEDUPE_RING": "0"}


def test_copies_that_are_sent_again_after_a_crash_are_folded_once(engine: Engine):
    worker = engine.worker()
    for turn, step in enumerate(("changelog", "write", "ack")):
        numbers = range(40 * turn, 40 * turn + 40)
        engine.send((b"key-%d" % n, event("ada", n, item_id=f"item-{n % 7}")) for n in numbers)
        worker.start(crash=step, **NO_RING)
        assert worker.wait_for_end() == -signal.SIGKILL
    worker.start(**NO_RING)
    engine.wait_until_all_is_done()
    engine.wait_for_snapshot()
    worker.stop()

    copies = [r for r in engine.read("user-events") if dict(r.headers).get("rekeyed-from")]
    originals = {dict(copy.headers)["rekeyed-from"] for copy in copies}
    done = driftline(
        *("verify", "fold", *engine.options, "--data-dir", worker.data_dir, "--json"), **NO_RING
    )
    report = json.loads(done.stdout)

    assert len(originals) == 120
    assert len(copies) > 120, "no copy was sent again: the crashes came too early or too late"
    assert done.returncode == 0, json.dumps(report, indent=1)
    assert "120 events folded" in report["checks"]["rows in the changelog"]["notes"]
