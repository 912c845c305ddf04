"""The notary as an auditor meets it: beside a running service, signing what others append, through kills."""

import os
import signal
import time
from base64 import b64decode

from tests.conftest_parts import is_running, wait_for
from tests.conftest_up import Up, is_part

from sightline.adapters.notes import Checkpoint, verify_checkpoint
from sightline.domain.merkle import verify_consistency


def signed(up: Up) -> Checkpoint:
    return verify_checkpoint(up.client.get("/v1/audit/checkpoint").text, up.client.get("/v1/audit/key").text)


def test_what_the_service_says_is_signed_soon(running: Up) -> None:
    """The figure is printed: what a busy machine adds to it is not the notary's."""
    wait_for(lambda: running.status("/v1/audit/checkpoint") == 200)
    answer = running.client.post("/v1/sessions")
    position, answered = int(answer.headers["Event-Position"]), time.monotonic()
    wait_for(lambda: signed(running).tree_size >= position)
    print(f"signed after {time.monotonic() - answered:.2f} s")
    assert running.get(f"/v1/audit/proof/{position}")["position"] == position


def test_a_killed_notary_goes_on_with_the_tree_that_it_signed(running: Up) -> None:
    wait_for(lambda: running.status("/v1/audit/checkpoint") == 200)
    before = signed(running)
    pid = next(pid for pid, line in running.pids().items() if is_part(line, "notarize"))
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_running(pid))
    position = int(running.client.post("/v1/sessions").headers["Event-Position"])
    wait_for(lambda: signed(running).tree_size >= position)
    found = running.get("/v1/audit/consistency", **{"from": before.tree_size})
    after = verify_checkpoint(found["checkpoint"], running.client.get("/v1/audit/key").text)
    proof = running.get("/v1/audit/consistency", **{"from": before.tree_size, "to": after.tree_size})["proof"]
    assert after.origin == before.origin
    assert verify_consistency(before.tree_size, before.root, after.tree_size, after.root, list(map(b64decode, proof)))
