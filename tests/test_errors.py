import pytest

from dcgan_dist.errors import UsageError, UserError, run_and_report, show_tracebacks


def failing(error: UserError):
    def act() -> int:
        raise error

    return act


def on_all_ranks(error: UserError) -> UserError:
    error.on_all_ranks = True
    return error


@pytest.mark.parametrize(
    ("error", "rank", "code", "text"),
    [
        (UserError("disk full"), 0, 1, "error: disk full\n"),
        (UserError("disk full"), 3, 1, "rank 3: error: disk full\n"),
        (UsageError("--seed x"), 0, 2, "error: --seed x\n"),
        (on_all_ranks(UsageError("--seed x")), 3, 2, ""),
        (on_all_ranks(UserError("bad shard")), 3, 1, ""),
    ],
)
def test_an_error_is_one_line_by_one_rank(capsys, error, rank, code, text):
    assert run_and_report(failing(error), rank=rank) == code
    assert capsys.readouterr() == ("", text)


@pytest.mark.parametrize(("local_rank", "speaks"), [("0", True), ("1", False)])
def test_a_command_that_is_wrong_on_one_node_is_said_once_there(capsys, monkeypatch, local_rank, speaks):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert run_and_report(failing(UsageError("--config x.yaml: cannot be read")), rank=9) == 2
    assert capsys.readouterr().err == ("rank 9: error: --config x.yaml: cannot be read\n" if speaks else "")


def test_debug_lets_it_through():
    show_tracebacks(True)
    with pytest.raises(UserError, match="disk full"):
        run_and_report(failing(UserError("disk full")))


def test_a_bug_is_no_users_error():
    with pytest.raises(ZeroDivisionError):
        run_and_report(lambda: 1 // 0)


def test_the_exit_code_is_the_commands_own():
    assert run_and_report(lambda: 75) == 75
