"""Rejection sampling: what is kept, resume, a teacher that times out, and a teacher on a real engine."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cellray.puzzles import records
from cellray.puzzles.answer import written
from cellray.puzzles.puzzle import Puzzle
from cellray.train.posttraining.distill import Asking, Order, distil, right
from jobs import distill
from tests.train.posttraining.conftest import made_up


class Teacher:
    """Knows the answers to puzzles of two cells, and says so in its third candidate."""

    def __init__(self, puzzles):
        self.known = {one.messages()[0]["content"]: one for one in puzzles}
        self.asked = 0

    async def ask(self, messages, asking, seed):
        self.asked += 1
        puzzle = self.known[messages[0]["content"]]
        good = puzzle.answer if len(puzzle) == 2 else puzzle.answer[::-1]
        wrong = [written("so", puzzle.answer[::-1]), "no tags: " + " | ".join(puzzle.answer)]
        return [*wrong, written("because", good), written("again", good)][: asking.candidates]


def test_right_answers_are_kept_and_not_asked_again(root):
    puzzles, more = made_up(40, sizes=(2, 3)), made_up(5, seed=1, sizes=(4,))
    teacher, order = Teacher(puzzles + more), Order(root, "teacher", Asking(candidates=4), chunk=7)
    kept, facts = asyncio.run(distil(order, teacher, puzzles))
    two = [one for one in puzzles if len(one) == 2]
    assert {one.key for one in kept} == {one.key for one in two}
    assert all(one.trace == written("because", one.answer) for one in kept)
    assert facts["by_size"]["2"]["rate"] == 1
    assert facts["by_size"]["2"]["candidate_rate"] == 0.5
    assert facts["by_size"]["3"]["rate"] == 0
    asked = teacher.asked
    again, same = asyncio.run(distil(order, teacher, puzzles + more))
    assert teacher.asked == asked + 5
    assert [one.key for one in again] == [one.key for one in kept]
    assert same["puzzles"] == facts["puzzles"] + 5


def test_what_is_right():
    puzzle = made_up(1, sizes=(3,))[0]
    assert right(puzzle, written("x", puzzle.answer))
    assert not right(puzzle, written("x", [*puzzle.answer, "B cell"]))
    assert not right(puzzle, f"<answer>{' | '.join(puzzle.answer)}</answer>")


class Server(BaseHTTPRequestHandler):
    """OpenAI's interface: refuses to answer in time until it is told to be quick."""

    quick = threading.Event()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.quick.wait(2)
        puzzle = Puzzle.of_prompt(asked["messages"][0]["content"].split("\nYou are an expert")[0])
        text = written("guess", puzzle.candidates)
        choices = [
            {"index": n, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for n in range(asked["n"])
        ]
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": choices}
        data = json.dumps(body).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass

    def log_message(self, *_):
        pass


def test_a_teacher_that_times_out_is_asked_again_by_the_next_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    puzzles = made_up(6, sizes=(2,))
    records.write(str(tmp_path / "puzzles.parquet"), puzzles)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    given = [
        str(tmp_path / "puzzles.parquet"),
        "--url",
        url,
        "--model",
        "any",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert distill.main([*given, "--timeout", "0.1"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] == len({one.key for one in puzzles})
    assert "timed out" in told["first_error"].lower()
    Server.quick.set()
    assert distill.main(given) == 0
    lucky = {one.key for one in puzzles if one.answer == one.candidates}
    kept = records.read(str(tmp_path / "out" / "distilled.parquet"))
    assert {one.key for one in kept} == lucky
    assert lucky
    assert all("guess" in one.trace for one in kept)
    server.shutdown()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray")
def test_a_teacher_on_an_engine(tiny_lm, tmp_path, capsys):
    """A model that knows nothing: asked, nothing accepted; a prompt longer than its context is counted."""
    long = Puzzle("x ", (("G1",) * 200, ("G2",)), ("B cell", "T cell"), ("B cell", "T cell"))
    records.write(str(tmp_path / "puzzles.parquet"), [*made_up(3, sizes=(2,)), long])
    given = [str(tmp_path / "puzzles.parquet"), "--model", str(tiny_lm), "--out", str(tmp_path / "out")]
    assert distill.main([*given, "--candidates", "2", "--max-tokens", "16", "--json"]) == 0
    told = json.loads((tmp_path / "out" / "acceptance.json").read_text())
    assert (told["accepted"], told["failed"], told["invalid"]) == (0, 0, 1)
    assert "tokens" in told["first_error"]


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--candidates", "0"], "candidates"), (["--model", "nowhere"], "no config.json")],
)
def test_a_users_mistake_is_one_line(tmp_path, capsys, more, says):
    records.write(str(tmp_path / "puzzles.parquet"), made_up(1))
    given = [str(tmp_path / "puzzles.parquet"), "--model", "mini-cell-o1", "--out", str(tmp_path), *more]
    assert distill.main(given) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_puzzles_without_answers_are_refused(tmp_path, capsys):
    records.write(str(tmp_path / "puzzles.parquet"), [Puzzle("x ", (("A",),), ("a",))])
    given = [str(tmp_path / "puzzles.parquet"), "--model", "any", "--url", "http://127.0.0.1:9/v1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "test")
        assert distill.main([*given, "--out", str(tmp_path)]) == 2
    assert "needs gold answers" in capsys.readouterr().err
