"""How complaints are shown and ordered."""

from __future__ import annotations

from pathlib import Path

from outrider.config.problems import Mark, Problem, did_you_mean, in_order


def test_mark() -> None:
    """A place is file:line:column, and a file as a whole is just its name."""
    assert str(Mark("o.yaml", 3, 7)) == "o.yaml:3:7"
    assert str(Mark("o.yaml", 0, 0)) == "o.yaml"


def test_render(tmp_path: Path) -> None:
    """A problem shows place, path and sentence, the line with a caret under the column, and the remedy."""
    path = tmp_path / "o.yaml"
    path.write_text("a: 1\nb:   wrong\n")
    problem = Problem(Mark(str(path), 2, 6), "b", "expected a number", "write 5")
    assert problem.render().splitlines() == [
        f"{path}:2:6  error  b: expected a number",
        "    2 | b:   wrong",
        "      |      ^",
        "      write 5",
    ]


def test_render_without_a_line(tmp_path: Path) -> None:
    """A problem of a file as a whole, or of one that has gone, is shown without the line."""
    assert Problem(Mark("gone.yaml", 0, 0), "", "cannot be read").render() == "gone.yaml  error  cannot be read"
    gone = tmp_path / "gone.yaml"
    assert Problem(Mark(str(gone), 1, 1), "a", "no", severity="warning").render() == f"{gone}:1:1  warning  a: no"


def test_line_beyond_the_end(tmp_path: Path) -> None:
    """A place beyond the end of the file, as for something missing, is still shown."""
    path = tmp_path / "o.yaml"
    path.write_text("a: [1")
    assert Problem(Mark(str(path), 2, 1), "", "unfinished").render() == f"{path}:2:1  error  unfinished"


def test_as_dict() -> None:
    """For machines there is every part by name."""
    assert Problem(Mark("o.yaml", 3, 7), "a.b", "no", "do this").as_dict() == {
        "file": "o.yaml",
        "line": 3,
        "column": 7,
        "severity": "error",
        "path": "a.b",
        "message": "no",
        "hint": "do this",
    }


def test_order() -> None:
    """Problems come in the order of the file, by number and not by text, each once."""
    places = [("b", 1, 1), ("a", 10, 1), ("a", 9, 12), ("a", 9, 2), ("a", 10, 1)]
    problems = [Problem(Mark(*place), "", "no") for place in places]
    shown = [str(problem.mark) for problem in in_order(problems)]
    assert shown == ["a:9:2", "a:9:12", "a:10:1", "b:1:1"]


def test_did_you_mean() -> None:
    """A near word is offered, and none when none is near."""
    assert did_you_mean("timout", ["timeout", "retry"]) == 'did you mean "timeout"?'
    assert did_you_mean("zzz", ["timeout", "retry"]) == ""
    assert did_you_mean("timout", []) == ""
