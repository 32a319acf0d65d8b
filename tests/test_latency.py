import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from rewriter import latency
from rewriter._worker import Worker
from rewriter.errors import ModelError, OptionError
from rewriter.runtime import Target

MODEL = parser.parse_model(
    '<ir_version: 8, opset_import: ["": 17]> g (float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }'
).SerializeToString()
FEEDS = {"x": np.ones((2, 8), np.float32)}
TARGETS = [Target(threads=1), Target(threads=2)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "relu.onnx"
    found.write_bytes(MODEL)
    return found


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def noisy_quads(rng: np.random.Generator, ratio: float, quads: int = 60) -> np.ndarray:
    """Log ratios as a busy machine gives them: heavy tails, correlated, and a shift of every round."""
    noise = 0.05 * rng.standard_t(2, size=(4, quads + 1))
    shifts = 0.003 * rng.standard_normal((4, 1))
    return math.log(ratio) + noise[:, 1:] + 0.3 * noise[:, :-1] + shifts


# --- the statistics -------------------------------------------------------------------------------


def test_a_known_speedup_is_found(rng: np.random.Generator) -> None:
    found = latency.estimate(noisy_quads(rng, 1.5))
    assert found.value == pytest.approx(1.5, rel=0.02)  # 240 quads of 5 % noise: some 0.5 % standard error
    assert found.lower < found.low < found.value < found.high
    assert found.lower > 1.4


def test_intervals_cover(rng: np.random.Generator) -> None:
    found = [latency.estimate(noisy_quads(rng, 1.0, 12), seed) for seed in range(60)]
    covered = sum(each.low <= 1.0 <= each.high for each in found)
    assert covered >= 52  # 57 expected, standard deviation 1.7
    assert sum(each.lower > 1.0 for each in found) <= 1


def test_estimate_is_seeded(rng: np.random.Generator) -> None:
    quads = noisy_quads(rng, 1.2)
    assert latency.estimate(quads, 3) == latency.estimate(quads, 3)


def test_equal_ratios_leave_no_doubt() -> None:
    found = latency.estimate(np.full((4, 5), math.log(2)))
    assert (found.value, found.low, found.high, found.lower) == pytest.approx((2, 2, 2, 2))


def test_one_quad_proves_nothing() -> None:
    found = latency.estimate(np.array([[0.5]]))
    assert found.lower == found.low == 0.0
    assert found.high == math.inf


def test_few_quads_widen_the_bound(rng: np.random.Generator) -> None:
    few = noisy_quads(rng, 1.0, 3)
    many = np.tile(few, (1, 20))
    assert latency.estimate(few).lower < latency.estimate(many).lower


def test_noise_bursts_do_not_move_the_estimate(rng: np.random.Generator) -> None:
    quads = np.full((4, 20), math.log(1.3)) + 0.001 * rng.standard_normal((4, 20))
    quads[1, 3:9] += 2.0
    assert latency.estimate(quads).value == pytest.approx(1.3, rel=0.002)


# --- the processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=["one thread", "two threads"])
def test_compare_times_both(target: Target) -> None:
    told: list[tuple[int, int]] = []
    found = latency.compare(
        MODEL, MODEL, FEEDS, target, seconds=0.2, max_pairs=24, progress=lambda *x: told.append(x)
    )
    assert found.pairs == 24
    assert 0 < found.before_p10_ms <= found.before_ms <= found.before_p90_ms
    assert 0 < found.after_p10_ms <= found.after_ms <= found.after_p90_ms
    assert found.speedup_lower <= found.speedup_low <= found.speedup <= found.speedup_high
    assert found.before_size_bytes == found.after_size_bytes == len(MODEL)
    assert found.before_load_ms > 0
    assert (found.batch, found.threads, found.provider) == (2, target.threads, "cpu")
    assert 0 < len(found.before_times_ms) <= 2000
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    if sys.platform == "linux":
        assert found.before_peak_bytes >= found.baseline_bytes > 1_000_000


def test_compare_leaves_nothing_behind(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    latency.compare(path, MODEL, FEEDS, Target(threads=1), seconds=0.1, max_pairs=8)
    assert list(temporary.iterdir()) == []
    assert path.is_file()


def test_compare_checks_what_it_is_given(path: Path) -> None:
    with pytest.raises(OptionError, match="positive"):
        latency.compare(path, path, FEEDS, seconds=0)
    with pytest.raises(ModelError, match=r"none\.onnx' is not a file"):
        latency.compare(path, path.with_name("none.onnx"), FEEDS)
    with pytest.raises(ModelError, match="cannot load"):
        latency.compare(path, b"junk", FEEDS, seconds=0.1)
    with pytest.raises(ModelError, match="failed to run"):
        latency.compare(path, path, {"x": np.ones((2, 9), np.float32)}, seconds=0.1)


@pytest.mark.parametrize("target", TARGETS, ids=["one thread", "two threads"])
def test_a_worker_ends_with_its_block(path: Path, target: Target) -> None:
    with Worker(path, FEEDS, target) as worker:
        pid = worker._process.pid
        times = worker.burst(5)
        assert times.shape == (5,)
        assert (times > 0).all()
    assert gone(pid)


def test_a_worker_with_a_pool_stands_still_between_bursts(path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    with Worker(path, FEEDS, Target(threads=2)) as worker:
        worker.burst(1)
        status = Path(f"/proc/{worker._process.pid}/stat")
        deadline = time.monotonic() + 5
        while (
            state := status.read_text().rpartition(")")[2].split()[0]
        ) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state == "T"


@pytest.mark.parametrize("target", TARGETS, ids=["one thread", "two threads"])
def test_a_dead_worker_is_one_clear_line(path: Path, target: Target) -> None:
    with Worker(path, FEEDS, target) as worker:
        worker._process.send_signal(signal.SIGKILL)
        with pytest.raises(ModelError, match=r"'relu.onnx' died \(signal 9\).*out of memory") as caught:
            worker.burst(1)
    assert "\n" not in str(caught.value)


def test_a_worker_that_cannot_load_is_gone(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"junk\.onnx"):
        Worker(junk, FEEDS, Target(threads=1))


def test_an_interrupt_ends_the_workers(path: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group; the workers must be gone and the parent must see KeyboardInterrupt."""
    if sys.platform == "win32":
        pytest.skip("signals of POSIX")
    script = tmp_path / "timing.py"
    script.write_text(
        "import signal, sys, numpy as np\n"
        # shells start programs in the background with it ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from rewriter import _worker, latency\n"
        "from rewriter.runtime import Target\n"
        "start = _worker.Worker.__init__\n"
        "def told(self, *arguments):\n"
        "    start(self, *arguments)\n"
        "    print(self._process.pid, flush=True)\n"
        "_worker.Worker.__init__ = told\n"
        "feeds = {'x': np.ones((2, 8), np.float32)}\n"
        f"latency.compare(Path({str(path)!r}), Path({str(path)!r}), feeds, Target(threads=2), seconds=60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        time.sleep(0.3)
        os.killpg(parent.pid, signal.SIGINT)
        _, errors = parent.communicate(timeout=20)
    assert b"KeyboardInterrupt" in errors
    assert all(gone(pid) for pid in workers)


# --- many small models ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=["one thread", "two threads"])
def test_interleaved_times_every_model(target: Target) -> None:
    feeds = [{"x": np.ones((n, 8), np.float32)} for n in (1, 2, 3)]
    found = latency.interleaved([MODEL] * 3, feeds, target, seconds=0.05)
    assert len(found) == 3
    assert all(0 < ms < 1000 for ms in found)
    assert latency.interleaved([], [], target) == []


def test_interleaved_wants_feeds_for_every_model() -> None:
    with pytest.raises(ValueError, match="zip"):
        latency.interleaved([MODEL, MODEL], [FEEDS], Target(threads=1))


def test_a_slow_second_run_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the system hands over the memory that the first run showed to be needed."""
    told = itertools.chain([30.0, 130.0], itertools.repeat(30.0))

    def time_runs(job: object, clock: str, count: int) -> np.ndarray:
        return np.array([next(told) for _ in range(count)])

    tried: list[float] = []

    def hopeless(times: Sequence[float], turns: int) -> list[bool]:
        tried.extend(times)
        return [False]

    monkeypatch.setattr(latency, "time_runs", time_runs)
    (found,) = latency.interleaved([MODEL], [FEEDS], Target(threads=1), seconds=0.01, hopeless=hopeless)
    assert [*tried, found] == [30.0] * (len(tried) + 1)
