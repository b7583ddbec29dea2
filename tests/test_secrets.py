"""Secrets in every place where a user can give one: none is printed, and none is in a file that others can read."""

import gzip
import json
import shlex
import stat
import sys
from types import SimpleNamespace
from urllib.parse import quote, quote_plus

import pytest
import yaml
from support.fake_wandb import FakeWandb
from support.folders import make_pictures
from support.http_server import HttpServer
from support.shards import write_ours

from dcgan_dist import __main__ as front
from dcgan_dist.errors import UserError
from dcgan_dist.location import Location
from dcgan_dist.run import wandb as run_wandb

TINY = shlex.split(
    "--model.image_size 32 --model.nz 4 --model.ngf 4 --model.ndf 4 --batch_size 4 --images 8 --data.workers 1 "
    "--data.retries 0 --data.timeout 1 --log.samples 1"
)
SECRETS = ("t0p5ecretTokenOf24Letters", "pä ss/w:o@r?d#4'&%41+=,;{}$x")
STREAM = "--data.reader stream --data.allow_pipe"


@pytest.fixture(params=SECRETS, ids=["plain", "odd"])
def place(request, tmp_path, monkeypatch, capfd, caplog):
    """A folder with shards, also behind a web server, and the words in which commands name them by secrets."""
    given, work = tmp_path / "given", tmp_path / "work"
    given.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(work / name))
    shard = write_ours(given / "a.tar", 12).read_bytes()
    other = write_ours(given / "d.tar", 12, first=50).read_bytes()
    damaged = bytearray(shard)
    damaged[3000:3100] = bytes(100)
    (given / "list.csv").write_text(f"path,label\nhttp://me:{quote(request.param, safe='')}@host/1.png,0\n")
    (given / "no.yaml").write_text(f'data: {{shards: ["http://me:{quote(request.param, safe="")}@host/a.tar"\n')
    make_pictures(given / "pictures", 6)
    with HttpServer(
        {"a.tar": shard, "b.tar.gz": gzip.compress(shard), "c.tar": bytes(damaged), "d.tar": other}
    ) as server:
        yield Place(
            request.param, server, given, work, monkeypatch, lambda: "".join((*capfd.readouterr(), caplog.text))
        )


class Place(SimpleNamespace):
    def __init__(self, secret, server, given, work, monkeypatch, output):
        quoted = quote(secret, safe="")
        host = server.url("").removeprefix("http://")
        command = f": {shlex.quote(secret)}; cat {given}/a.tar"
        super().__init__(secret=secret, given=given, work=work, monkeypatch=monkeypatch, output=output, quoted=quoted)
        self.words = {
            "URL": f"http://me:{quoted}@{host}a.tar?X-Amz-Signature={quoted}#{quoted}",
            "NEW": f"http://me:{quoted}@{host}a.tar?X-Amz-Signature={quoted}2#{quoted}",
            "GZ": f"http://me:{quoted}@{host}b.tar.gz?{quoted}",
            "BAD": f"http://me:{quoted}@{host}c.tar?sig={quoted}",
            "NONE": f"http://me:{quoted}@{host}none.tar?sig={quoted}",
            "OTHER": f"http://me:{quoted}@{host}d.tar?sig={quoted}",
            "GONE": f"http://me:{quoted}@127.0.0.1:9/a.tar?sig={quoted}",
            "RAW": f"http://me:x{secret}@127.0.0.1:9/a.tar?sig={secret}",
            "S3": f"s3://KEY:{secret}@bucket/a.tar?versionId={secret}",
            "PIPE": f"pipe:{command}",
            "SAYS": f"pipe:cat {shlex.quote(secret)}",
            "SHELL": f"pipe:curl-that-is-not-there {shlex.quote(secret)}; {shlex.quote(secret)}; false",
            "GIVEN": str(given),
        }

    def run(self, line):
        """The exit code of a command line, in which some words stand for others. Looks at all that it leaves."""
        argv = [self.words.get(word, word.replace("GIVEN", str(self.given))) for word in shlex.split(line)]
        argv = [self.words[word[:-1]] + "." if word.endswith("!") else word for word in argv]
        self.monkeypatch.setattr(sys, "argv", ["dcgan-dist", *argv])
        try:
            code = front.main(argv)
        except SystemExit as end:
            code = end.code
        except UserError as error:  # by --debug
            sys.excepthook(type(error), error, error.__traceback__)
            code = error.exit_code
        self.printed = self.output()
        self.check(self.printed, "what is printed")
        for path in self.work.rglob("*"):
            self.check(str(path), "a name")
            if path.is_file() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                self.check(path.read_bytes().decode(errors="replace"), path)
        return code

    def check(self, text, what):
        secret = self.secret
        forms = {secret, quote(secret), quote_plus(secret), quote(secret, safe=""), quote(quote(secret, safe=""))}
        forms |= {repr(secret)[1:-1], json.dumps(secret)[1:-1], shlex.quote(secret)}
        flat = " ".join(text.split())
        for form in forms:
            assert form not in text, f"{form} in {what}: {text[:2000]}"
            assert form not in flat, f"{form} in {what}: {text[:2000]}"


COMMANDS = {
    # command line: exit code
    "train --run_dir r --data.shards URL {tiny}": 0,
    "train --run_dir r --data.shards GZ {tiny}": 0,
    "train --run_dir r --data.shards PIPE {stream} {tiny}": 0,
    "train --run_dir r --data.shards URL --dry_run {tiny}": 0,
    "train --run_dir r --data.shards BAD {tiny} --images 24": 1,
    "train --run_dir r --data.shards BAD --data.damaged substitute {tiny} --images 24": 0,
    "train --run_dir r --data.shards NONE --debug {tiny}": 1,
    "train --run_dir r --data.shards GONE {tiny}": 1,
    "train --run_dir r --data.shards RAW {tiny}": 1,
    "train --run_dir r --data.shards S3 {tiny}": 1,
    "train --run_dir r --data.shards SAYS {stream} {tiny}": 1,
    "train --run_dir r --data.shards SHELL {stream} {tiny}": 1,
    "train --run_dir r --data.shards PIPE --data.reader stream {tiny}": 2,
    "train --run_dir r --data.shards PIPE {tiny}": 2,
    "train --run_dir r --data.shards URL --data.reader stream {tiny}": 2,
    "train --run_dir r --data.shards URL URL {tiny}": 2,
    "train --run_dir r --data.shards PIPE PIPE {stream} {tiny}": 2,
    "train --run_dir r --data.shards URL! --data.shardz 1 {tiny}": 2,
    "train --run_dir r --data.shards GIVEN/a.tar --resume URL {tiny}": 2,
    "train --run_dir URL": 2,
    "train --run_dir r --data.cache URL": 2,
    "train --run_dir r --images URL": 2,
    "train --run_dir r --images PIPE": 2,
    "train --run_dir r --model.d_norm PIPE": 2,
    "train --run_dir r URL": 2,
    "train --run_dir r PIPE": 2,
    "train --config URL": 2,
    "train --config RAW": 2,
    "train --config GIVEN/no.yaml": 2,
    "train --config GIVEN/no.yaml --debug": 2,
    "shard URL out --size 32": 0,
    "shard GZ out --size 32": 0,
    "shard BAD out --size 32 --skip_bad": 0,
    "shard GIVEN/list.csv out --size 32 --skip_bad": 1,
    "shard NONE out --size 32": 1,
    "shard S3 out --size 32": 1,
    "shard PIPE out --size 32": 2,
    "shard URL URL --size 32": 2,
    "shard GIVEN/pictures RAW --size 32": 2,
    "shard URL out --size URL": 2,
    "shard URL out --size 32 --image_column x": 2,
    "shard --merge URL": 2,
    "verify URL GZ --json v.json": 0,
    "verify BAD NONE GONE --json v.json --timeout 1 --retries 0 --processes 1": 1,
    "verify BAD --repair good --processes 1": 1,
    "verify RAW S3 --json v.json --timeout 1 --retries 0": 1,
    "verify URL --manifest NONE": 1,
    "verify PIPE": 2,
    "verify URL --json URL": 2,
    "inspect URL --json i.json": 0,
    "inspect BAD --json i.json --all": 0,
    "inspect NONE": 1,
    "inspect SAYS": 2,
    "sample URL": 2,
    "sample PIPE": 2,
    "sample r --out URL": 2,
    "report URL": 2,
    "report PIPE": 2,
    "doctor --run_dir r --data.shards URL --only shards,cache,run_dir,launcher --json d.json {tiny}": 0,
    "doctor --run_dir r --data.shards PIPE --only shards,cache --json d.json {stream} {tiny}": 0,
    "doctor --run_dir r --data.shards BAD NONE --only shards,cache --json d.json {tiny}": 1,
    "doctor --only URL": 2,
    "URL": 2,
    "PIPE": 2,
}


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize(("line", "code"), COMMANDS.items())
def test_no_command_shows_a_secret(place, line, code):
    line = line.format(tiny=shlex.join(TINY), stream=STREAM)
    found = place.run(line)
    assert found == code, place.printed
    assert code == 0 or "Traceback" not in place.printed or "--debug" in line


SETTINGS = {
    "NETRC": ("GIVEN/netrc", "verify http://127.0.0.1:9/a.tar --timeout 1 --retries 0"),
    "HTTP_PROXY": ("http://me:{quoted}@127.0.0.1:9", "verify http://host/a.tar --timeout 1 --retries 0"),
    "http_proxy": ("me:{secret}@127.0.0.1:9", "verify http://host/a.tar --timeout 1 --retries 0"),
    "WANDB_BASE_URL": ("http://me:{secret}@127.0.0.1:9", "doctor --only wandb --wandb.mode online --json d.json"),
    "FSSPEC_S3_ENDPOINT_URL": ("http://me:{secret}@127.0.0.1:9", "verify s3://bucket/a.tar --timeout 1 --retries 0"),
}


@pytest.mark.parametrize(("name", "value", "line"), [(name, *both) for name, both in SETTINGS.items()])
def test_no_secret_of_a_setting_is_shown(place, name, value, line):
    (place.given / "netrc").write_text(f"machine host login me password x\n{place.quoted}\n")
    (place.given / "netrc").chmod(0o600)
    values = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": place.secret, "WANDB_API_KEY": place.secret}
    values[name] = value.format(secret=place.secret, quoted=place.quoted).replace("GIVEN", str(place.given))
    for variable, text in values.items():
        place.monkeypatch.setenv(variable, text)
    assert place.run(line) == 1
    assert place.printed


@pytest.mark.usefixtures("as_before")
def test_a_new_signature_is_no_other_data_and_the_configuration_is_the_owners_alone(place):
    tiny = shlex.join(TINY)
    assert place.run(f"train --run_dir r --data.shards URL {tiny}") == 0
    config, environment = place.work / "r/config.yaml", place.work / "r/environment.json"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert place.words["URL"] in yaml.safe_load(config.read_text())["data"]["shards"]
    assert f"{config.relative_to(place.work)}: readable only by its owner" in place.printed
    assert json.loads(environment.read_text())["command"][:4] == ["dcgan-dist", "train", "--run_dir", "r"]
    assert place.run("report r") == 0
    page = (place.work / "r/report.html").read_text()
    assert str(Location(place.words["URL"])) in page
    assert place.run(f"train --run_dir r --data.shards NEW {tiny} --images 16") == 0
    assert "resuming from r/checkpoints/000000008" in place.printed
    assert place.run("train --config r/config.yaml --run_dir again") == 0  # which has the secrets
    assert "done: 16 images" in place.printed
    assert place.run(f"train --run_dir r --data.shards OTHER {tiny} --images 24") == 2
    assert "was trained on another data set" in place.printed
    assert place.run(f"train --run_dir open --data.shards GIVEN/a.tar {tiny}") == 0
    assert stat.S_IMODE((place.work / "open/config.yaml").stat().st_mode) & 0o044


@pytest.mark.usefixtures("as_before")
def test_nothing_secret_reaches_wandb_or_its_files(place):
    try:
        with FakeWandb() as server:
            address = server.url.replace("http://", f"http://me:{place.quoted}@")
            for name, value in {**server.env(), "WANDB_BASE_URL": address, "WANDB_ERROR_REPORTING": "false"}.items():
                place.monkeypatch.setenv(name, value)
            assert place.run(f"train --run_dir r --data.shards URL --wandb.mode online {shlex.join(TINY)}") == 0
            (run,) = server.runs.values()
            place.check(b"\n".join(server.received).decode(errors="replace"), "what W&B got")
        assert run.config["data"]["value"]["shards"] == [str(Location(place.words["URL"]))]
        assert server.url in place.printed
    finally:
        run_wandb._end_service()
