"""Which tokens count: a table of those that don't, and keys of every kind."""

import asyncio
import base64
import contextlib
import json
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest import mock

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from chatserver import keyset
from chatserver.tokens import (
    LEEWAY_SECONDS,
    TOKEN_CHARACTERS,
    BadToken,
    ConnectionClaims,
    ExpiredToken,
    KeysUnavailable,
    SubscriptionClaims,
    SubscriptionOptions,
    Verifier,
    make_token,
)
from tests.fakes import PATIENT
from tests.server import ROOT

SECRET = "0123456789abcdef0123456789abcdef"
LATER, PAST = 4_000_000_000, 1_500_000_000
GOOD: dict[str, Any] = {"sub": "ann", "exp": LATER, "aud": "chat", "iss": "login"}

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
WEAK_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def verifier(**settings: Any) -> Verifier:
    return Verifier(**{"hmac_secret": SECRET, "audience": "chat", "issuer": "login", "require": ("exp",), **settings})


def token(change: dict[str, Any] | None = None, *, without: str = "", key: Any = SECRET, **options: Any) -> str:
    claims = {name: value for name, value in (GOOD | (change or {})).items() if name != without}
    return jwt.encode(claims, key, **{"algorithm": "HS256", **options})


def part(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed(payload: bytes, **header: object) -> str:
    """With a payload that no library would make."""
    return jwt.api_jws.PyJWS().encode(payload, SECRET, algorithm="HS256", headers=dict(header) or None)


def unsigned(algorithm: str) -> str:
    return f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(GOOD)}."


def confused() -> str:
    """Signed with the public key's text as if that were a secret."""
    head = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(GOOD)}"
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return f"{head}.{part(signature.sign(head.encode(), pem(RSA_KEY).encode()))}"


def critical(names: list[str]) -> str:
    """Signed well, with headers that whoever reads it has to understand."""
    head = f"{part({'alg': 'HS256', 'typ': 'JWT', 'b64': True, 'crit': names})}.{part(GOOD)}"
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return f"{head}.{part(signature.sign(head.encode(), SECRET.encode()))}"


HEAD, BODY, SIGNATURE = token().split(".")
BAD = {
    "empty": "",
    "garbage": "garbage",
    "two dots": "..",
    "one part": HEAD,
    "two parts": f"{HEAD}.{BODY}",
    "four parts": f"{HEAD}.{BODY}.{SIGNATURE}.{SIGNATURE}",
    "no signature": f"{HEAD}.{BODY}.",
    "half a signature": f"{HEAD}.{BODY}.{SIGNATURE[:20]}",
    "another payload": f"{HEAD}.{part(GOOD | {'sub': 'bob'})}.{SIGNATURE}",
    "another header": f"{part({'alg': 'HS512'})}.{BODY}.{SIGNATURE}",
    "no header": f".{BODY}.{SIGNATURE}",
    "a header that is a list": f"{part([])}.{BODY}.{SIGNATURE}",
    "not base64": f"{HEAD}.{BODY}!.{SIGNATURE}",
    "spaces": f" {token()} ",
    "a line break": token() + "\n",
    "a letter that is no ASCII": token() + "\u00e9",
    "a lone surrogate": "\ud800",
    "alg none": unsigned("none"),
    "alg None": unsigned("None"),
    "alg NONE": unsigned("NONE"),
    "alg nOnE": unsigned("nOnE"),
    "alg empty": unsigned(""),
    "another secret": token(key="f" * 32),
    "an algorithm for which there is no key": token(key=RSA_KEY, algorithm="RS256"),
    "an elliptic curve for which there is no key": token(key=EC_KEY, algorithm="ES256"),
    "the public key as a secret": confused(),
    "another audience": token({"aud": "mail"}),
    "other audiences": token({"aud": ["mail", "cha"]}),
    "no audience": token(without="aud"),
    "another issuer": token({"iss": "elsewhere"}),
    "no issuer": token(without="iss"),
    "no exp": token(without="exp"),
    "exp as text": signed(json.dumps(GOOD | {"exp": "4000000000"}).encode()),
    "exp true": signed(json.dumps(GOOD | {"exp": True}).encode()),
    "exp null where it is needed": signed(json.dumps(GOOD | {"exp": None}).encode()),
    "exp a list": signed(json.dumps(GOOD | {"exp": [LATER]}).encode()),
    "expire_at as text": signed(json.dumps(GOOD | {"expire_at": "4000000000"}).encode()),
    "expire_at null": signed(json.dumps(GOOD | {"expire_at": None}).encode()),
    "iat true": signed(json.dumps(GOOD | {"iat": True}).encode()),
    "exp not a number": signed(b'{"sub":"ann","aud":"chat","iss":"login","exp":NaN}'),
    "exp endless": signed(b'{"sub":"ann","aud":"chat","iss":"login","exp":1e400}'),
    "exp in the next universe": signed(b'{"sub":"ann","aud":"chat","iss":"login","exp":1e300}'),
    "nbf as text": signed(json.dumps(GOOD | {"nbf": "0"}).encode()),
    "iat as text": signed(json.dumps(GOOD | {"iat": "0"}).encode()),
    "sub a number": signed(json.dumps(GOOD | {"sub": 7}).encode()),
    "sub a list": signed(json.dumps(GOOD | {"sub": ["ann"]}).encode()),
    "sub with a line break": token({"sub": "ann\n"}),
    "sub with an escape": token({"sub": "\x1b[31m"}),
    "sub with U+0000": token({"sub": "a\0"}),
    "sub from right to left": token({"sub": "a\u202eb"}),
    "sub too long": token({"sub": "a" * 256}),
    "channels a text": token({"channels": "lobby"}),
    "channels of numbers": token({"channels": [1]}),
    "subs a list": token({"subs": ["lobby"]}),
    "subs of texts": token({"subs": {"lobby": "yes"}}),
    "info in base64 that is none": token({"b64info": "!"}),
    "info in base64 that is no JSON": token({"b64info": base64.b64encode(b"{").decode()}),
    "a channel": token({"channel": "lobby"}),
    "an empty channel": token({"channel": ""}),
    "info that is very deep": token({"info": json.loads("[" * 80 + "]" * 80)}),
    "a payload that is a list": signed(b"[]"),
    "a payload that is no JSON": signed(b"{"),
    "a payload that is no text": signed(b"\xff\xfe"),
    "a payload that is very deep": signed(b"[" * 5000),
    "no JWT": token(headers={"typ": "JWE"}),
    "a critical header": signed(json.dumps(GOOD).encode(), crit=["bingo"], bingo=1),
    "a critical header that PyJWT knows": critical(["b64"]),
    "no critical headers, but the list": critical([]),
    "a critical header for a payload that is elsewhere": f"{part({'alg': 'HS256', 'b64': False, 'crit': ['b64']})}..AA",
    "very long": token({"info": "x" * TOKEN_CHARACTERS}),
    "a megabyte": "a" * (1 << 20),
    "long without end": f"{part(b'x' * 5000)}." * 3,
}
with warnings.catch_warnings():  # PyJWT says that the key is too short, and so it is
    warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)
    WEAK_TOKEN = token(key=WEAK_KEY, algorithm="RS256", headers={"kid": "weak"})
EXPIRED = {
    "expired": token({"exp": PAST}),
    "just now": token({"exp": int(time.time()) - 1}),
    "not yet": token({"nbf": LATER}),
    "of a connection that is over": token({"expire_at": PAST}),
    "of a connection that never was": token({"expire_at": -1}),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
async def test_what_is_wrong_is_refused(text: str) -> None:
    with pytest.raises(BadToken) as caught:
        await verifier().connection(text)
    assert (str(caught.value), caught.value.args) == ("invalid token", ("invalid token",))
    assert caught.value.reason
    assert len(text) < 3 or text not in caught.value.reason


@pytest.mark.parametrize("text", EXPIRED.values(), ids=EXPIRED.keys())
async def test_what_does_not_count_now_is_told_from_what_never_counts(text: str) -> None:
    for ask in (verifier().connection, verifier().subscription):
        with pytest.raises(ExpiredToken):
            await ask(text)


def test_a_server_without_a_key_starts_without_what_verifies() -> None:
    code = "import sys, chatserver.commands; assert not {'jwt', 'cryptography'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


async def test_without_a_key_no_token_counts() -> None:
    with pytest.raises(BadToken):
        await Verifier().connection(token())


async def test_whoever_needs_no_end_and_no_audience_gets_none() -> None:
    found = await Verifier(hmac_secret=SECRET).connection(jwt.encode({}, SECRET))
    assert found == ConnectionClaims("")


async def test_a_connection_is_what_its_token_says() -> None:
    claims = {
        "info": {"name": "Ann"},
        "channels": ["lobby", "news"],
        "subs": {"red": {"info": {"role": "mod"}, "b64data": base64.b64encode(b'{ "a": 1 }').decode()}, "blue": {}},
        "meta": {"unknown": True},
    }
    assert await verifier().connection(token(claims)) == ConnectionClaims(
        "ann",
        float(LATER),
        '{"name":"Ann"}',
        ("lobby", "news"),
        {"red": SubscriptionOptions('{"role":"mod"}', '{"a":1}'), "blue": SubscriptionOptions()},
    )


async def test_a_subscription_is_what_its_token_says() -> None:
    found = await verifier().subscription(token({"channel": "$vault", "client": "c1", "info": 1, "data": None}))
    assert found == SubscriptionClaims("ann", "$vault", "c1", float(LATER), "1", "")
    with pytest.raises(BadToken):
        await verifier().subscription(token())


@pytest.mark.parametrize(
    "user", ["", "a" * 255, "\u00e9" * 127, "\u0645\u06cc\u200c\u0631\u0648\u0645", "Ann Lee", "a\u00a0b"]
)
async def test_a_user_may_be_called_as_people_are(user: str) -> None:
    assert (await verifier().connection(token({"sub": user}))).user == user


async def test_clocks_may_differ_a_little() -> None:
    assert (await verifier().connection(token({"nbf": time.time() + LEEWAY_SECONDS / 2}))).user == "ann"


@pytest.mark.parametrize("channel", ["", None, 7])
async def test_a_subscription_has_a_channel(channel: object) -> None:
    with pytest.raises(BadToken):
        await verifier().subscription(signed(json.dumps(GOOD | {"channel": channel}).encode()))


@pytest.mark.parametrize(
    ("expire_at", "expected"), [(None, LATER), (0, None), (LATER - 1, LATER - 1), (LATER + 1.5, LATER + 1.5)]
)
async def test_the_connection_may_end_at_another_time_than_the_token(expire_at: Any, expected: float | None) -> None:
    found = await verifier().connection(token({} if expire_at is None else {"expire_at": expire_at}))
    assert found.expires_at == expected


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_a_secret_is_for_its_family_as_far_as_it_is_long_enough(algorithm: str) -> None:
    needed = int(algorithm[2:]) // 8
    secret, short = "s" * needed, "s" * max(32, needed - 1)
    assert (await verifier(hmac_secret=secret).connection(token(key=secret, algorithm=algorithm))).user == "ann"
    if needed > 32:
        with pytest.raises(BadToken):
            await verifier(hmac_secret=short).connection(token(key=secret, algorithm=algorithm))


@pytest.mark.parametrize("header", [{"jku": "http://evil"}, {"x5u": "http://evil"}, {"kid": "../../etc/passwd"}])
async def test_what_a_token_says_of_keys_does_not_count(header: dict[str, str]) -> None:
    assert (await verifier().connection(token(headers=header))).user == "ann"


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA_KEY, "RS256"), (RSA_KEY, "RS512"), (EC_KEY, "ES256")], ids=["RS256", "RS512", "ES256"]
)
async def test_a_public_key_is_for_its_family(key: Any, algorithm: str) -> None:
    known = verifier(hmac_secret="", public_key_pem=pem(key))
    assert (await known.connection(token(key=key, algorithm=algorithm))).user == "ann"
    for wrong in (
        confused(),
        token(),
        unsigned("none"),
        token(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
    ):
        with pytest.raises(BadToken):
            await known.connection(wrong)


async def test_several_keys_may_be_in_use() -> None:
    known = verifier(public_key_pem=pem(RSA_KEY))
    for text in (token(), token(key=RSA_KEY, algorithm="RS256")):
        assert (await known.connection(text)).user == "ann"
    with pytest.raises(BadToken):
        await known.connection(confused())


@pytest.mark.parametrize("secret", ["short", "x" * 31])
def test_a_secret_that_can_be_guessed_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Verifier(hmac_secret=secret)


@pytest.mark.parametrize(
    "secret",
    [pem(RSA_KEY), pem(EC_KEY), json.dumps({"kty": "oct", "k": "x" * 43}), "hunter2" * 5 + "\udcff"],
    ids=["RSA", "EC", "JWK", "no text"],
)
def test_a_secret_that_is_a_key_of_another_kind_is_refused_without_quoting_it(secret: str) -> None:
    with pytest.raises(ValueError, match=r"key of another kind|UTF-8") as caught:
        Verifier(hmac_secret=secret)
    assert "hunter2" not in str(caught.value)
    assert not set(secret.split()) & set(str(caught.value).split()) - {"-----END", "KEY-----"}


@pytest.mark.parametrize(
    "text",
    [
        "no key",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        pem(WEAK_KEY),
        pem(ec.generate_private_key(ec.SECP256K1())),
        RSA_KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    ],
    ids=["text", "broken", "short", "curve", "private"],
)
def test_what_is_no_good_public_key_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"PEM form|allowed") as caught:
        Verifier(public_key_pem=text)
    assert text.splitlines()[-2:][0] not in str(caught.value)


@PATIENT
@given(
    st.text() | st.binary().map(lambda data: f"{HEAD}.{part(data)}.{SIGNATURE}") | st.text("ey.J0aA-_=", max_size=60)
)
def test_nothing_else_is_raised_whatever_comes(text: str) -> None:
    with pytest.raises(BadToken):
        asyncio.run(verifier().connection(text))


@PATIENT
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from([*GOOD, "nbf", "iat", "subs", "channels", "info", "b64info", "expire_at"]), inner
            )
        ),
    )
)
def test_nothing_else_is_raised_whatever_is_signed(claims: object) -> None:
    text = signed(json.dumps(claims).encode())
    try:
        found = asyncio.run(Verifier(hmac_secret=SECRET).connection(text))
    except (BadToken, ExpiredToken):
        return
    assert isinstance(found.user, str)


async def test_a_token_that_was_made_counts() -> None:
    known = Verifier(hmac_secret=SECRET)
    found = await known.connection(make_token(SECRET, "ann", seconds=60, info='{"name":"Ann"}', now=LATER - 60))
    assert found == ConnectionClaims("ann", float(LATER), '{"name":"Ann"}')
    assert (await known.subscription(make_token(SECRET, "ann", channel="lobby"))).channel == "lobby"
    assert (await known.connection(make_token(SECRET, "ann"))).expires_at is None


async def test_a_token_that_was_made_counts_where_audience_and_issuer_matter() -> None:
    made = make_token(SECRET, "ann", seconds=60, audience="chat", issuer="login")
    assert (await verifier().connection(made)).user == "ann"


# Keys that are fetched


class Login:
    """Publishes keys, and signs with them."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.asked = 0
        self.reached = asyncio.Event()
        self.gate: asyncio.Event | None = None
        """It answers when this is set."""
        self.answer: Callable[[], web.Response] = lambda: web.json_response({"keys": self.keys})

    async def handle(self, request: web.Request) -> web.Response:
        self.asked += 1
        self.reached.set()
        if self.gate:
            await self.gate.wait()
        return self.answer()

    async def moved(self, request: web.Request) -> web.Response:
        raise web.HTTPFound("/keys.json")

    async def slow(self, request: web.Request) -> web.StreamResponse:
        """One byte after the other, each in time."""
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.01)
        return response

    def publish(self, name: str, key: Any, **more: str) -> None:
        kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
        self.keys.append(json.loads(kind.to_jwk(key.public_key())) | {"kid": name} | more)


@pytest.fixture
async def login() -> AsyncIterator[Login]:
    login = Login()
    app = web.Application()
    app.router.add_get("/keys.json", login.handle)
    app.router.add_get("/moved.json", login.moved)
    app.router.add_get("/slow.json", login.slow)
    async with TestServer(app) as server:
        login.url = str(server.make_url("/keys.json"))  # type: ignore[attr-defined]
        yield login


@pytest.fixture
def known(login: Login) -> Verifier:
    return verifier(hmac_secret="", jwks_url=login.url)  # type: ignore[attr-defined]


def by(key: Any, name: object, algorithm: str) -> str:
    return token(key=key, algorithm=algorithm, headers={"kid": name} if name is not None else {})


async def test_published_keys_are_found_by_their_names(login: Login, known: Verifier) -> None:
    login.publish("one", RSA_KEY)
    login.publish("two", EC_KEY, use="sig", alg="ES256")
    for text in (by(RSA_KEY, "one", "RS384"), by(EC_KEY, "two", "ES256")) * 3:
        assert (await known.connection(text)).user == "ann"
    assert login.asked == 1


async def test_only_the_key_with_that_name_counts_and_only_for_what_it_is_for(login: Login, known: Verifier) -> None:
    login.publish("one", RSA_KEY, alg="RS256")
    login.publish("cipher", RSA_KEY, use="enc")
    login.publish("odd", RSA_KEY, alg="ES256")
    login.keys += [
        {"kty": "oct", "kid": "secret", "k": part(SECRET.encode())},
        {"kty": "RSA", "kid": "half"},
        {"kty": "EC", "crv": "P-1", "kid": "curve"},
        {"kid": 7},
        json.loads(RSAAlgorithm.to_jwk(RSA_KEY)) | {"kid": "private"},
        json.loads(ECAlgorithm.to_jwk(EC_KEY)) | {"kid": "private curve"},
    ]
    login.publish("weak", WEAK_KEY)
    login.publish("signer", RSA_KEY)
    login.keys[-1]["key_ops"] = ["sign"]
    wrong = [
        by(EC_KEY, "one", "ES256"),
        by(rsa.generate_private_key(public_exponent=65537, key_size=2048), "one", "RS256"),
        by(RSA_KEY, "one", "RS512"),
        by(RSA_KEY, "cipher", "RS256"),
        by(RSA_KEY, "odd", "RS256"),
        by(RSA_KEY, "ONE", "RS256"),
        by(RSA_KEY, "half", "RS256"),
        by(RSA_KEY, "../one", "RS256"),
        by(RSA_KEY, None, "RS256"),
        by(RSA_KEY, "private", "RS256"),
        by(EC_KEY, "private curve", "ES256"),
        by(RSA_KEY, "signer", "RS256"),
        WEAK_TOKEN,
        by(SECRET, "secret", "HS256"),
        by(SECRET, "one", "HS256"),
    ]
    for text in wrong:
        with pytest.raises(BadToken):
            await known.connection(text)
    assert (await known.connection(by(RSA_KEY, "one", "RS256"))).user == "ann"


async def test_a_new_key_is_fetched_when_it_is_used_but_not_for_each_unknown_one(login: Login, known: Verifier) -> None:
    login.publish("one", RSA_KEY)
    await known.connection(by(RSA_KEY, "one", "RS256"))
    login.publish("two", EC_KEY)
    for _ in range(5):
        with pytest.raises(BadToken):
            await known.connection(by(EC_KEY, "two", "ES256"))
    assert login.asked == 1
    with mock.patch.object(keyset, "PAUSE_SECONDS", 0.0):
        await known.connection(by(EC_KEY, "two", "ES256"))
    assert login.asked == 2


async def test_a_key_that_is_published_no_more_ends(login: Login, known: Verifier) -> None:
    login.publish("one", RSA_KEY)
    await known.connection(by(RSA_KEY, "one", "RS256"))
    login.keys.clear()
    with mock.patch.multiple(keyset, FRESH_SECONDS=0.0, PAUSE_SECONDS=0.0), pytest.raises(BadToken):
        await known.connection(by(RSA_KEY, "one", "RS256"))


ANSWERS: dict[str, Callable[[], web.Response]] = {
    "an error": lambda: web.Response(status=500),
    "no JSON": lambda: web.Response(text="<html>"),
    "another shape": lambda: web.json_response([]),
    "very deep": lambda: web.Response(text="[" * 100_000),
    "a key that is none": lambda: web.json_response({"keys": ["one"]}),
    "very long": lambda: web.Response(text='{"keys":[]' + " " * keyset.FETCH_BYTES + "}"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_keys_that_cant_be_had_are_no_fault_of_the_token(
    login: Login, known: Verifier, answer: Callable[[], web.Response]
) -> None:
    login.publish("one", RSA_KEY)
    good, login.answer = login.answer, answer
    with pytest.raises(KeysUnavailable):
        await known.connection(by(RSA_KEY, "one", "RS256"))
    login.answer = good
    with mock.patch.object(keyset, "PAUSE_SECONDS", 0.0):
        await known.connection(by(RSA_KEY, "one", "RS256"))
        login.answer = answer
        with mock.patch.object(keyset, "FRESH_SECONDS", 0.0):  # what is known is used until there is something newer
            await known.connection(by(RSA_KEY, "one", "RS256"))


async def test_many_who_come_at_once_fetch_once(login: Login, known: Verifier) -> None:
    login.publish("one", RSA_KEY)
    await asyncio.gather(*(known.connection(by(RSA_KEY, "one", "RS256")) for _ in range(20)))
    assert login.asked == 1


async def test_whoever_does_not_listen_is_no_fault_of_the_token() -> None:
    with pytest.raises(KeysUnavailable):
        await verifier(hmac_secret="", jwks_url="http://127.0.0.1:9/keys").connection(by(RSA_KEY, "one", "RS256"))


async def test_an_unknown_key_may_count_as_long_as_the_keys_cant_be_had(login: Login, known: Verifier) -> None:
    """Whoever signs with a new key is asked to try again, and not told that its token is no good."""
    login.publish("one", RSA_KEY)
    await known.connection(by(RSA_KEY, "one", "RS256"))
    good, login.answer = login.answer, lambda: web.Response(status=503)
    with mock.patch.object(keyset, "PAUSE_SECONDS", 0.0), pytest.raises(KeysUnavailable):
        await known.connection(by(EC_KEY, "two", "ES256"))
    with pytest.raises(KeysUnavailable):
        await known.connection(by(EC_KEY, "two", "ES256"))
    assert (await known.connection(by(RSA_KEY, "one", "RS256"))).user == "ann"
    login.publish("two", EC_KEY)
    login.answer = good
    with mock.patch.object(keyset, "PAUSE_SECONDS", 0.0):
        assert (await known.connection(by(EC_KEY, "two", "ES256"))).user == "ann"


async def test_who_goes_away_while_keys_are_fetched_costs_the_others_nothing(login: Login, known: Verifier) -> None:
    login.publish("one", RSA_KEY)
    login.gate = asyncio.Event()
    first, second = (asyncio.create_task(known.connection(by(RSA_KEY, "one", "RS256"))) for _ in range(2))
    await login.reached.wait()
    first.cancel()
    login.gate.set()
    assert (await second).user == "ann"
    assert first.cancelled()
    assert login.asked == 1


@pytest.mark.parametrize("path", ["moved.json", "slow.json"])
async def test_neither_redirections_nor_trickles_are_followed(login: Login, path: str) -> None:
    login.publish("one", RSA_KEY)
    url = login.url.replace("keys.json", path)  # type: ignore[attr-defined]
    with mock.patch.object(keyset, "FETCH_SECONDS", 0.2), pytest.raises(KeysUnavailable):
        await verifier(hmac_secret="", jwks_url=url).connection(by(RSA_KEY, "one", "RS256"))


async def test_who_does_not_come_to_an_end_is_given_up(login: Login, known: Verifier) -> None:
    login.gate = asyncio.Event()
    with mock.patch.object(keyset, "FETCH_SECONDS", 0.05), pytest.raises(KeysUnavailable):
        await known.connection(by(RSA_KEY, "one", "RS256"))
    login.gate.set()


async def test_that_keys_cant_be_had_is_logged(login: Login, known: Verifier, caplog: pytest.LogCaptureFixture) -> None:
    login.answer = lambda: web.Response(status=503)
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await known.connection(by(RSA_KEY, "one", "RS256"))
    (line,) = [record for record in caplog.records if record.name == "chatserver.keyset"]
    assert line.getMessage() == "keys not fetched"
    assert "503" in line.problem  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://login.example/keys",
        "login.example/keys",
        "https://",
        "https://login.example:http/keys",
        "https://[::1/keys",
        "https://ann:hunter2@login.example/keys",
        "https://login.example/a b",
        "https://login.example/a\nb",
        "https://b\u00fccher.example/keys",
    ],
)
def test_keys_are_fetched_from_the_web_only(url: str) -> None:
    with pytest.raises(ValueError, match="no URL") as caught:
        Verifier(jwks_url=url)
    assert "hunter2" not in str(caught.value)


@PATIENT
@given(
    st.dictionaries(
        st.sampled_from(["kty", "crv", "alg", "use", "key_ops", "n", "e", "x", "y", "d", "p"]),
        st.sampled_from(["RSA", "EC", "P-256", "sig", "AQAB", "A" * 43, "RS256"])
        | st.integers()
        | st.none()
        | st.text(),
    )
)
def test_nothing_is_raised_whatever_is_published(change: dict[str, Any]) -> None:
    for jwk in (RSAAlgorithm.to_jwk(RSA_KEY.public_key()), ECAlgorithm.to_jwk(EC_KEY.public_key())):
        found = keyset._key(json.loads(jwk) | change)
        assert found is None or found.algorithms


@pytest.mark.parametrize("setting", [{"public_key_pem": pem(EC_KEY)}, {"jwks_url": "https://login.example/keys"}])
def test_what_public_keys_need_is_named(setting: dict[str, str]) -> None:
    with (
        mock.patch.object(keyset, "find_spec", return_value=None),
        pytest.raises(ValueError, match=r"pip install 'chatserver\[jwt\]'"),
    ):
        Verifier(**setting)


async def test_whoever_runs_the_server_is_told_what_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for text, error in ((BAD["another secret"], BadToken), (EXPIRED["expired"], ExpiredToken)):
        with pytest.raises(error):
            await verifier().connection(text)
    problems = [record.__dict__["problem"] for record in caplog.records if record.message == "token refused"]
    assert problems == ["InvalidSignatureError", "token expired"]
