# SPDX-License-Identifier: Apache-2.0
"""tools/serve_load.py at a tiny size. No time is judged here."""

import json

from tools import serve_load


def test_clients_are_answered_or_told_to_come_again(capsys):
    flags = "--images 300 --width 16 --clients 2 --seconds 1 --other-seconds 1 --batch 2 --queue 3"
    assert serve_load.main(flags.split()) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    one, some, many = result["phases"]
    assert [phase["clients"] for phase in (one, some, many)] == [1, 2, 20]
    assert set(one["statuses"]) == set(some["statuses"]) == {"200"}
    assert one["answers"] and some["answers"] and many["refused"]
    assert set(many["statuses"]) <= {"200", "429", "503"}
    assert result["server_status"] == 0 and one["p50_ms"] <= one["p99_ms"]


def test_a_connection_that_breaks_is_no_answer():
    import argparse
    import asyncio
    import time

    async def hang_up(reader, writer):
        await reader.readline()
        writer.close()

    async def ask():
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        phase, args = serve_load.Phase(1), argparse.Namespace(images=5, k=1)
        await serve_load._client(args, port, phase, time.perf_counter() + 0.3, 0)
        return phase

    phase = asyncio.run(ask())
    assert set(phase.statuses) == {0} and not phase.seconds
