"""What code from a response may try, done for real in a worker, and what the fence says about it."""

import errno
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from entropy_rl.rewards import Grader, nursery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fence is Linux's")

ATTACK, VALUE, CARELESS = "foreign_code:attack", "foreign_code:value", "foreign_code:careless"
SECONDS = 60  # the longest wait for another process

WITHOUT_A_FENCE = [
    "read_environment",
    "read_environment_of_the_parent",
    "read_the_token",
    "read_the_token_by_a_system_call",
    "kill",
    "send_by_pidfd",
    "limit",
    "trace",
    "write",
    "write_by_a_system_call",
    "append",
    "truncate",
    "remove",
    "rename",
    "link",
    "symlink",
    "chmod",
    "utime",
    "mkdir",
    "mkfifo",
    "mknod",
    "bind_a_socket",
    "connect",
    "fork",
    "execute",
    "kill_the_parent",
    "send_to_the_parent_by_pidfd",
    "limit_the_parent",
]
ONLY_IN_THE_FENCE = [
    "read_memory",
    "kill_everything",
    "bomb",
    "reach_root",
    "write_after_the_hooks_are_emptied",
]
# Numbers on x86_64. With these arguments each would do nothing, or fail in another way than by EPERM.
CALLS = {
    "add_key": (248, b"user", b"x", b"y", 1, -3),
    "bpf": (321, 0, 0, 0),
    "clone3": (435, 0, 0),
    "execve": (59, b"/bin/true", 0, 0),
    "fork": (57,),
    "io_uring_setup": (425, 1, 0),
    "kcmp": (312, 0, 0, 0, 0, 0),
    "keyctl": (250, 0, -3, 0),
    "kill": (62, 0, 0),
    "memfd_create": (319, b"x", 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "openat2": (437, -100, b"/", 0, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0),
    "pidfd_getfd": (438, 0, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "sched_setaffinity": (203, 0, 0, 0),
    "sendmsg": (46, 0, 0, 0),
    "setns": (308, 0, 0),
    "shmget": (29, 0, 4096, 0o1600),
    "socketpair": (53, 1, 1, 0, 0),
    "tkill": (200, 1, 0),
    "unshare": (272, 0),
    "userfaultfd": (323, 0),
    "vfork": (58,),
}


@pytest.fixture(scope="module")
def grader():
    with Grader(cpu_seconds=2.0, wall_seconds=20.0) as grader:
        yield grader


@pytest.fixture
def given(tmp_path):
    """What attacks act on: a process, a token in a home folder, a file, the path of a file to make, a port."""
    token = tmp_path / "home" / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("secret")
    kept = tmp_path / "kept"
    kept.write_text("kept")
    kept.chmod(0o666)
    tmp_path.chmod(0o777)
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={"A": "b"})
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {
            "trainer": os.getpid(),
            "victim": victim.pid,
            "token": str(token),
            "kept": str(kept),
            "path": str(tmp_path / "made"),
            "port": server.getsockname()[1],
        }
    victim.kill()
    victim.wait(SECONDS)


def outside(program, *arguments, **options):
    """Runs a program in a fresh interpreter; its output."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", WITHOUT_A_FENCE)
def test_the_attacks_work_without_a_fence(given, name):
    program = f"import foreign_code; print(foreign_code.attack({name!r}, {given!r}))"
    assert outside(program).strip() == "1.0"


@pytest.mark.parametrize("name", WITHOUT_A_FENCE + ONLY_IN_THE_FENCE)
def test_no_attack_works_in_the_fence(grader, given, name):
    rewards = grader.grade([(ATTACK, name, given), (VALUE, "7", None)])
    assert rewards in ([None, 7.0], [0.0, 7.0])
    assert Path(given["kept"]).read_text() == "kept" and os.stat(given["kept"]).st_nlink == 1
    assert not os.path.lexists(given["path"])
    assert Path(f"/proc/{given['victim']}/stat").read_text().split()[2] in "SR"  # it was neither killed nor stopped


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
@pytest.mark.parametrize("name", CALLS)
def test_system_calls_are_refused(grader, name):
    """By number, as code does that is not held up by Python's own checks."""
    number, *arguments = CALLS[name]
    refused = errno.ENOSYS if name == "clone3" else errno.EPERM
    code = f"[LIBC.syscall({number}, *{arguments!r}), __import__('ctypes').get_errno()] == [-1, {refused}]"  # no effect
    assert grader.grade([(VALUE, code, None)]) == [1.0]


@pytest.mark.parametrize("verifier", ["reasoning_gym:chain_sum", "exact", "math", VALUE])
def test_a_patched_verifier_judges_no_later_response(grader, verifier):
    """Each response is judged by verifiers as they were loaded, whatever an earlier one did to them."""
    answer = {"answer": "3"} if "gym" in verifier else "3"
    wrong = (verifier, "0" if verifier == VALUE else r"\boxed{4}", answer)
    items = [wrong, (ATTACK, "patch", None), wrong, (ATTACK, "patch", None), wrong]
    rewards = grader.grade(items)
    assert rewards[0::2] == [0.0, 0.0, 0.0] and rewards[1::2] == [1.0, 1.0]


@pytest.mark.parametrize(
    "text",
    [
        '[1.0, null, ""]\n',
        '[null, ["x"], ""]\n',  # a cause that cannot be counted
        "[NaN, null, 1]\n",
        "[" * 100_000 + "\n",  # deeper than Python's parser
        "x",  # no end of the line
        '["ready", ["x"]]\n',
    ],
)
def test_a_forged_reply_reaches_no_other_response(grader, text):
    given = {"text": text, "times": 2 if len(text) > 1000 else 50_000}
    items = [(ATTACK, "forge", given), (VALUE, "0", None), ("exact", "a", "b"), (VALUE, "0", None)]
    rewards = grader.grade(items)
    assert rewards[0] in (None, 1.0) and rewards[1:] == [0.0, 0.0, 0.0]


def test_a_reply_without_an_end_is_not_read_for_long():
    """Not until the process has used its time: the trainer would keep it all."""
    with Grader(cpu_seconds=5.0, wall_seconds=10.0) as grader:
        assert grader.grade([(ATTACK, "flood", None), (VALUE, "7", None)]) == [None, 7.0]
        assert grader.causes == {"died": 1}


def test_closed_descriptors_and_lost_timers():
    with Grader(cpu_seconds=0.5, wall_seconds=30.0) as quick:
        items = [(ATTACK, "close_everything", None), (ATTACK, "outlast_the_timer", None), (VALUE, "7", None)]
        assert quick.grade(items) == [None, None, 7.0]
        assert quick.causes == {"died": 1, "timeout": 1}
        assert "over 0.5 s of CPU time" in quick._detail


@pytest.mark.parametrize("kind", [VALUE, CARELESS])
@pytest.mark.parametrize(
    "code",
    [
        "len(bytes(3 * 10**9))",
        "len(b'x' * 3 * 10**9)",
        "len([bytearray(10**7) for _ in range(400)])",
        "len(list(range(10**9)))",
    ],
)
def test_a_response_that_runs_out_of_memory_is_not_a_wrong_one(kind, code):
    """Also if the verifier catches the MemoryError and returns 0."""
    with Grader(memory_mb=512) as grader:
        assert grader.grade([(kind, code, None), (kind, "7", None)]) == [None, 7.0]
        assert grader.causes == {"memory": 1}


def test_memory_below_the_limit_can_be_used():
    with Grader(memory_mb=512) as grader:
        assert grader.grade([(VALUE, "len(bytearray(4 * 10**8))", None)]) == [4e8]


def test_what_a_reward_function_may_do(grader, tmp_path, monkeypatch):
    """Threads, NumPy, files beside the module and in the working directory, by relative paths; nothing hidden there."""
    grader.grade([("exact", "a", "a")])  # the nursery is there, in another folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("1 2 3")
    (tmp_path / ".env").write_text("TOKEN=1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "more.txt").write_text("4")
    good = [
        "len(open('words.txt').read())",
        "len(open('folder/more.txt').read())",
        "len(open(__file__).read()) > 0",
        "use_threads(None)",
        "__import__('numpy').ones((300, 300)).dot(__import__('numpy').ones((300, 300))).sum() > 0",
        "len(__import__('sympy').factorint(12))",
        "__import__('zoneinfo').ZoneInfo('Europe/Berlin') is not None",
    ]
    with Grader() as here:
        assert here.grade([(VALUE, code, None) for code in good]) == [5.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0]
        assert here.grade([(VALUE, "len(open('.env').read())", None), (VALUE, "7", None)]) == [None, 7.0]
        assert "Permission denied: '.env' (a verifier may compute, start threads, and read" in here._detail


def test_a_library_that_needs_what_the_fence_refuses_is_explained(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needy_reward.py").write_text(
        "import ctypes, os, sys\n"
        "def starts(response, answer):\n    import subprocess\n    return subprocess.run(['true']).returncode\n"
        "def dies(response, answer):\n    os.write(2, b'terminate called: no room')\n    os.abort()\n"
    )
    with Grader() as grader:
        with pytest.raises(RuntimeError, match=r"PermissionError.*it may not write files, start processes or use the"):
            grader.grade([("needy_reward:starts", "", None)])
        with pytest.raises(
            RuntimeError, match=r"status -6 \(SIGABRT\); it wrote: 'terminate called: no room'.*may not"
        ):
            grader.grade([("needy_reward:dies", "", None)])


def test_the_workers_are_nobodys_and_have_nothing(grader, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    nursery.close()
    grader.close()
    assert grader.grade([(VALUE, "'SECRET_TOKEN' in os.environ", None)]) == [0.0]
    grader.grade([("exact", "a", "a")])
    worker = grader._workers[0].pid
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines() if ":\t" in line
    )
    assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2"
    assert int(fields["CapEff"], 16) in (0, 1 << 2)  # none, or to read (Landlock says what)
    if os.geteuid() == 0:
        assert fields["Uid"].split() == ["65534"] * 4 and not fields["Groups"].split()


@pytest.mark.skipif(os.geteuid() != 0, reason="all other tests run as such a user")
def test_a_user_without_rights_has_the_same_fence():
    """Its namespaces come with one of users."""
    program = f"""
import ctypes, errno, os, pathlib, runpy, sysconfig
runpy.run_path({str(Path(nursery.__file__).with_name("worker.py"))!r})["_bare_package"]()
from entropy_rl.rewards import sandbox
sysconfig.get_paths()  # imports more of Python, which this user may not read
os.setgroups([])
os.setresgid(12345, 12345, 12345)
os.setresuid(12345, 12345, 12345)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: its /proc is its own, as after an exec
assert sandbox.isolate()
assert os.getuid() == 12345 and os.listdir("/proc/self/task") == ["1"]
fence = sandbox.prepare(True, sandbox.empty_network(), [], pathlib.Path("/"))
if os.fork() == 0:
    missing = sandbox.enter(fence, 512, None)
    for attempt in (os.fork, lambda: os.kill(1, 0), lambda: open("/etc/passwd"), lambda: os.setuid(0)):
        try:
            attempt()
        except PermissionError as error:
            missing.append(errno.errorcode[error.errno])
    print(missing, flush=True)
    os._exit(0)
os.wait()
"""
    assert outside(program).strip() == "['EPERM', 'EPERM', 'EACCES', 'EPERM']"


@pytest.mark.parametrize("refused", ["landlock", "unshare"])
def test_each_means_holds_without_the_others(refused):
    """The token is out of reach without Landlock if another user owns it, and signals without namespaces."""
    program = f"""
import ctypes, errno, os, platform, sys, tempfile
from entropy_rl.rewards import Grader, seccomp
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
number = {{"landlock": 444, "unshare": 272 if platform.machine() == "x86_64" else 97}}[{refused!r}]
assert seccomp.install(seccomp.refusal([number], errno.EPERM))
given = {{"victim": os.getpid(), "path": tempfile.mkdtemp() + "/made", "trainer": os.getpid()}}
with Grader() as grader:
    for name in ("kill", "send_by_pidfd", "limit", "write", "mkfifo", "fork", "read_environment"):
        print(grader.grade([("foreign_code:attack", name, given), ("exact", "a", "a")]))
"""
    assert outside(program).splitlines() == ["[None, 1.0]"] * 7


def test_a_machine_without_the_means_is_told_so_once():
    """The kernel's calls are refused before the run, as an old kernel or a container does; grading works as before."""
    program = """
import ctypes, errno, logging, sys
from absl import logging as absl_logging
from entropy_rl.rewards import Grader, seccomp
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
x86 = __import__("platform").machine() == "x86_64"
calls = (444, 272, 317) if x86 else (444, 97, 277)  # Landlock, unshare, seccomp
assert seccomp.install(seccomp.refusal(calls, errno.EPERM))
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
absl_logging.get_absl_logger().addHandler(handler)
for _ in range(2):
    with Grader(2) as grader:
        print(grader.grade([("exact", "a", "a"), ("exact", "a", "b"), ("foreign_code:value", "7", None)]))
print(len(lines), lines)
"""
    out = outside(program).splitlines()
    assert out[:2] == ["[1.0, 0.0, 7.0]"] * 2
    assert out[2].startswith("1 ")
    assert "lacks namespaces, an empty network, Landlock, seccomp here" in out[2]


def test_a_machine_with_the_means_is_not_warned():
    program = """
import logging
from absl import logging as absl_logging
from entropy_rl.rewards import Grader
absl_logging.get_absl_logger().addFilter(lambda record: print(record.getMessage()) or True)
with Grader() as grader:
    print(grader.grade([("foreign_code:value", "7", None)]))
"""
    assert outside(program).splitlines() == ["[7.0]"]
