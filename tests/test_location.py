"""Nothing that is made of a Location's text shows what is secret in it."""

import copy
import io
import json
import pickle
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dcgan_dist.errors import UsageError
from dcgan_dist.location import Location, redacted

SHOWN = {
    "folder/a?b#{0..3}.tar": "folder/a?b#{0..3}.tar",
    "s3://bucket/a@2x-{000..011}.tar": "s3://bucket/a@2x-{000..011}.tar",
    "hf://datasets/USER/NAME@main/a.tar": "hf://datasets/USER/NAME@main/a.tar",
    "http://127.0.0.1:8000/a@2x.tar": "http://127.0.0.1:8000/a@2x.tar",
    "https://me:PW@host:80/f/a.tar?sig=PW&x=1#PW": "https://host:80/f/a.tar",
    "https://PW@host/a.tar": "https://host/a.tar",
    "HTTPS://me:P/W@host/a.tar": "HTTPS://host/a.tar",
    "https://me:P?W#@host/a.tar": "https://host/a.tar",
    "https://me:P@W@host/a.tar": "https://host/a.tar",
    "s3://KEY:P/W@bucket/a.tar": "s3://bucket/a.tar",
    "https://host/a.tar?to=b@c": "https://host/a.tar",
    "https:/me:PW@host/a.tar": "https:/host/a.tar",
    "http://[bad/a.tar?PW": "http://[bad/a.tar",
    "http://me:PW@{a,b}/{0..9}.tar?s={PW,PV}": "http://{a,b}/{0..9}.tar",
    "{http://me:PW@a/0.tar,http://PW@b/1.tar}": "{http://a/0.tar,http://b/1.tar}",
    "--data.shards=https://me:PW@host/a.tar": "--data.shards=https://host/a.tar",
    "pipe:": "pipe:",
    "pipe:cat": "pipe:cat",
    "pipe:curl -H 'Authorization: PW' http://me:PW@host": "pipe:curl ...",
    "pipe:/opt/get.sh\tPW\nPW": "pipe:/opt/get.sh ...",
    "pipe:TOKEN=PW curl": "pipe:...",
    "pipe:(curl PW)": "pipe:...",
    "--data.shards=pipe:curl PW": "--data.shards=pipe:curl ...",
    "{pipe:curl PW,pipe:cat PW}": "{pipe:curl ...",
}


@pytest.mark.parametrize(("text", "shown"), SHOWN.items())
def test_what_is_shown(text, shown):
    place = Location(text)
    assert str(place) == shown
    assert place.reveal() == text
    assert place.secret == (text != shown)
    assert str(Location(shown)) == shown
    assert str(Location(place)) == shown
    assert Location(place).reveal() == text


SECRETS = st.text(st.characters(min_codepoint=33, categories=("L", "N", "P", "S")), min_size=6, max_size=30)
PLACES = (
    "https://user:{}@host:80/folder/0.tar",
    "https://{}@host/folder/0.tar",
    "s3://bucket/{{0..9}}.tar?X-Amz-Signature={}&x=1",
    "http://host/0.tar?{}#{}",
    "{{http://a:{}@b/0.tar,http://c:{}@d/0.tar}}",
)


def consumers(place):
    """Everything that turns it into text."""
    yield from (str(place), repr(place), f"{place}", f"{place!r:>9}", f"{place:>99}", format(place), ", ".join([place]))
    yield from (place + "", place.lower(), place.partition("://")[2], place.encode().decode(), str(Path(place)))
    yield from (repr([place]), repr({place: place}), str(UsageError(place)), json.dumps({place: [place]}))
    out = io.StringIO()
    print(place, file=out)
    yield out.getvalue()


@given(SECRETS, st.sampled_from(PLACES))
def test_no_secret_of_a_url_is_in_any_text(secret, form):
    encoded = quote(secret, safe="")
    place = Location(form.format(encoded, encoded))
    for text in consumers(place):
        assert encoded not in text
        assert secret not in text
    for other in pickle.loads(pickle.dumps(place)), copy.deepcopy(place):  # noqa: S301
        assert (other, other.reveal(), str(other)) == (place, place.reveal(), str(place))


@given(SECRETS, st.sampled_from(["pipe:curl -H 'Authorization: {}' http://host", "pipe:{} x", "pipe: {}\n{}"]))
def test_no_secret_of_a_command_is_in_any_text(secret, form):
    assume(not secret.replace("+", "").replace("/", "").replace(".", "").replace("-", "").replace("_", "").isalnum())
    for text in consumers(Location(form.format(secret, secret))):
        assert secret not in text


def test_places_are_the_same_when_all_of_them_is():
    a, b = Location("http://host/a.tar?v=1"), Location("http://host/a.tar?v=2")
    assert str(a) == str(b)
    assert a != b
    assert len({a, b, Location(a.reveal()), a.reveal()}) == 2
    assert a == "http://host/a.tar?v=1"
    assert Location("a.tar") == "a.tar"


@pytest.mark.parametrize(
    ("text", "given", "shown"),
    [
        ("Cannot get 'http://me:PW@host/a?PW' now", [], "Cannot get 'http://host/a' now"),
        ("in /data/http:/me:PW@host/a", [], "in /data/http:/host/a"),
        ("no option pipe:curl -u PW", ["pipe:curl -u PW"], "no option pipe:curl ..."),
        ("no option http://me:aPass wor d@host/a now", ["http://me:aPassword@host/a"], "no option http://host/a now"),
        ("data: 3 images, see https://host/a.html", [], "data: 3 images, see https://host/a.html"),
        ("pipe:COMMAND needs --data.allow_pipe", [], "pipe:COMMAND needs --data.allow_pipe"),
    ],
)
def test_text_of_others(text, given, shown):
    assert redacted(text, *given) == shown


def test_tokens_and_passwords_of_the_environment(monkeypatch):
    values = {
        "HF_TOKEN": "hf_abcdef", "AWS_SECRET_ACCESS_KEY": "s3/Cr+et", "WANDB_API_KEY": "0" * 40, "A_TOKEN": "yes",
        "FSSPEC_HTTP": '{"headers": {"Authorization": "Bearer t0ken+x"}}', "FSSPEC_S3_KEY": "s3-key-id\n",
        "https_proxy": "me:passw0rd/more@host:1", "GOOGLE_TOKEN_FILE": "/run/token", "HTTP_PROXY": "http://host:80",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert redacted("Illegal header 'Bearer t0ken+x\\n', s3-key-id") == "Illegal header 'Bearer ***\\n', ***"
    text = f"hf_abcdef s3/Cr+et {'0' * 40} Invalid port: 'passw0rd' yes /run/token http://host:80"
    assert redacted(text) == "*** *** *** Invalid port: '***' yes /run/token http://host:80"


def test_messages_of_other_programs_hide_secrets():
    place = Location("pipe:curl -H 'Bearer t0ken%2Fx' http://me:pa55@host/a.tar")
    assert (
        place.hide_in("curl: (6) no host 'pa55' for Bearer t0ken/x, t0ken%2Fx")
        == "curl: (6) no *** '***' for *** ***/x, ***"
    )
    assert Location("http://me:pa55@host/a.tar?sig=abcd").hide_in("host: pa55 abcd a.tar") == "host: *** *** a.tar"
