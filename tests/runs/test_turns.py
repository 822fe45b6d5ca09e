"""Turns in records, and how they are shown."""

from cagsr.runs.turns import by_role, recorded

TEXT = "<u>say it</u><a>no</a><u>why</u><a>"
TURNS = [("user", 3, 9), ("assistant", 16, 18), ("user", 25, 28)]


def test_only_conversations_are_recorded_by_turns():
    assert recorded("say", [("user", 0, 3)]) == {}
    assert recorded(TEXT, TURNS) == {"turns": [["user", 3, 9], ["assistant", 16, 18], ["user", 25, 28]]}
    assert recorded("<u>a", [("user", 3, 4)]) == {"turns": [["user", 3, 4]]}


def test_what_was_said_is_shown_by_role_and_tokens_are_found_in_it():
    spans = [(0, 3), (3, 6), (6, 9), (14, 17), (25, 31), (0, 0)]
    shown, moved = by_role(TEXT, TURNS, spans)
    assert shown == "User: say it\n\nAssistant: no\n\nUser: why"
    assert [shown[start:stop] for start, stop in moved] == ["", "say", " it", "n", "why", ""]
    assert by_role(TEXT, TURNS[2:], spans[-2:]) == ("why", [(0, 3), (0, 0)])
    assert by_role(TEXT, [], spans) == (TEXT, spans)
