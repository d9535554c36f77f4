"""What a scenario's file may say; all that is wrong with it is said at once, and before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from services.console.replay import Fate
from services.console.scenario._file import ScenarioError, load, parse
from services.console.scenario._scenario import Never, RunCommand
from shared.pcie import Address
from shared.protocol.facts import What

FILE: Final = Path("a-scenario.toml")
HEAD: Final = 'title = "A title"\ntopology = "lab"\n'
EXPECT: Final = '[[expect]]\nwhat = "device.removed"\nport = "00:02.0"\n'


def problems(text: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        parse(text, FILE)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{FILE}: ") for line in lines)
    return str(caught.value)


def test_a_scenario_is_read() -> None:
    scenario = parse(
        HEAD
        + "settings = {driver_s = 3}\n"
        + EXPECT
        + '[[inject]]\nupon = {what = "lease.opened", nth = 2}\nat = 0.5\nwhat = "remove"\ntarget = "00:02.0"\n'
        + '[[run]]\nargv = ["status"]\nexit = 3\n[[never]]\nwhat = "device.added"\n'
        + '[outcome]\n"3b:00.0" = "removed"\n',
        FILE,
    )
    assert scenario.settings == {"HOLDFAST_DRIVER_S": "3"}
    assert [timed.when.at for timed in scenario.timed] == [0.5, 0.0]
    assert scenario.timed[0].when.upon is not None
    assert scenario.timed[0].when.upon.nth == 2
    assert scenario.timed[1].action == RunCommand(argv=("status",), exit=3)
    assert scenario.never == (Never(what=What.DEVICE_ADDED),)
    assert scenario.outcome == {Address.parse("3b:00.0"): Fate.REMOVED}


def test_inline_functions_are_a_machine_and_virtual_ones_stand_on_it() -> None:
    scenario = parse(
        'title = "t"\nfirmware_first = true\n[[function]]\naddress = "0000:10:00.0"\nkind = "endpoint"\n'
        "sriov = {total = 2, device = 0x154c, offset = 16, stride = 1}\ndriver = {name = 'a \"b\"'}\n"
        '[outcome]\n"10:02.1" = "kept"\n',
        FILE,
    )
    assert scenario.machine.startswith("firmware_first = true\nfunction = [")
    assert Address.parse("10:02.0") in scenario.functions
    again = parse(f'title = "t"\n{scenario.machine}[outcome]\n"10:02.1" = "kept"\n', FILE)
    assert again.functions == scenario.functions


def test_everything_that_is_wrong_is_said_at_once() -> None:
    said = problems(
        'number = 39\nsurprise = 1\ntopology = "lab"\n[settings]\nready = 1\n[[inject]]\nat = -1\nwhat = "remove"\n'
        'target = "00:02.0"\n[[kill]]\nservice = "hotplugs"\n[[run]]\nargv = []\n'
    )
    for part in ("'surprise'", "title", "'ready' is none of", "[[inject]] 1", "no service 'hotplugs'", "[[run]] 1"):
        assert part in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it expects nothing"),
        ('[[expect]]\nwhat = "device.vanished"\n', "Invalid enum value 'device.vanished'"),
        ('[[expect]]\nwhat = "device.removed"\nport = "00:09.0"\n', "there is no 0000:00:09.0 in the topology"),
        ('[[expect]]\nwhat = "slot.state"\ndata = {state = "off"}\n', "a fact slot.state has no 'state'"),
        ('[[expect]]\nwhat = "slot.state"\ndata = {to = "gone"}\n', "to of a fact slot.state cannot be 'gone'"),
        (EXPECT + '[[never]]\nwhat = "device.removed"\n', "[[never]] 1 forbids what [[expect]] 1 expects"),
        (EXPECT + 'after = "nothing"\n', "no [[expect]] is called that"),
        (EXPECT + 'name = "a"\nafter = "a"\n', "'a' would have to come after itself"),
        (EXPECT + "exactly = 1\nat_least = 2\n", "exactly 1, and at least 2?"),
        (EXPECT + "at_least = 0\n", "at_least"),
        (EXPECT + "unknown = 0\n", "unknown field `unknown`"),
        ('[outcome]\n"00:09.0" = "kept"\n', "there is no 0000:00:09.0 in the topology"),
        ('[outcome]\n"3b:00.0" = "fine"\n', "cannot become 'fine'"),
        ('[outcome]\n"nonsense" = "kept"\n', "nonsense"),
        (EXPECT + '[[inject]]\nwhat = "explode"\ntarget = "00:02.0"\n', "Invalid enum value 'explode'"),
        (EXPECT + '[[inject]]\nwhat = "remove"\ntarget = "00:09.0"\n', "there is no 0000:00:09.0 in the topology"),
        (EXPECT + '[[inject]]\nwhat = "remove"\ntarget = "00:02.0"\nfor_s = -1\n', "for_s = -1.0 must be 0 or more"),
        (EXPECT + '[[inject]]\nwhat = "error"\ntarget = "00:02.0"\ncount = 0\n', "count = 0 must be at least 1"),
        (EXPECT + '[[inject]]\nat = 99\nwhat = "remove"\ntarget = "00:02.0"\n', "at 99 s is after the end"),
        (EXPECT + '[[inject]]\nat = nan\nwhat = "remove"\ntarget = "00:02.0"\n', "[[inject]] 1"),
        (EXPECT + '[[restart]]\nservice = "hotplug"\ndone = "x"\n', "no timed table is called that"),
        (EXPECT + '[[run]]\nargv = ["status"]\nends_after = "x"\n', "ends_after 'x'"),
        (
            EXPECT + '[[register]]\nfunction = "00:02.0"\nregister = "slot_controls"\nvalue = 0\n',
            "no register is called 'slot_controls'",
        ),
        (
            EXPECT + '[[register]]\nfunction = "00:02.0"\nregister = "slot_control"\nset = ["pdce"]\n',
            "slot_control has no bit 'pdce'",
        ),
        (
            EXPECT + '[[register]]\nfunction = "00:02.0"\nregister = "slot_control"\n',
            "say what it holds",
        ),
        (EXPECT + "[settings]\ndriver_s = -1\n", "HOLDFAST_DRIVER_S=-1.0 must be more than 0"),
        (EXPECT + "[[function]]\naddress = '00:00.0'\n", "two machines"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_what_can_never_be_is_refused(text: str, reason: str) -> None:
    assert reason in problems(HEAD + text)


def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"none\.toml cannot be read: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="is not text"):
        load(tmp_path / "bytes.toml")
    assert "not valid TOML" in problems("title = ")
    assert "cannot be read" in problems('title = "t"\ntopology = "elsewhere.toml"\n' + EXPECT)
    assert "choose" in problems(HEAD + "[[function]]\naddress = '00:00.0'\n" + EXPECT)
