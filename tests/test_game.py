"""Play: the state machine, what each message does, what the server judges."""

import json

from conftest import play_all


def test_two_players_play_a_whole_game(server):
    ann, bob = server.pair()
    ends = play_all([ann, bob])
    assert ends[0]["ranking"] == ends[1]["ranking"] and ends[0]["reason"] == "finished"
    kinds = [frame["type"] for frame in ann.frames]
    assert kinds[:2] == ["queued", "start"] and kinds.count("question") == kinds.count("reveal") == 3
