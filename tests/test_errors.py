"""The numbers and words of errors, which clients and other people's code depend on."""

import json

import pytest

from chatserver import errors
from chatserver.errors import ChatError, Disconnect, ForceDisconnect, PeerClosed, TooManyMessages

CHAT_ERRORS = [
    (errors.ChatError(), 400, "refused"),
    (errors.InternalError(), 100, "internal error"),
    (errors.Unauthorized(), 101, "unauthorized"),
    (errors.UnknownChannel(), 102, "unknown channel"),
    (errors.PermissionDenied(), 103, "permission denied"),
    (errors.MethodNotFound(), 104, "method not found"),
    (errors.AlreadySubscribed(), 105, "already subscribed"),
    (errors.LimitExceeded(), 106, "limit exceeded"),
    (errors.BadRequest(), 107, "bad request"),
    (errors.NotAvailable(), 108, "not available"),
    (errors.TokenExpired(), 109, "token expired"),
    (errors.Expired(), 110, "expired"),
    (errors.TooManyMessages(1.26), 111, "too many messages, retry in 1.3 s"),
    (errors.Unrecoverable(), 112, "unrecoverable position"),
    (errors.NotJSON(), 410, "not valid JSON"),
    (errors.WrongShape(), 411, "not a message"),
    (errors.UnknownType(), 412, "unknown type"),
    (errors.ServerOnly(), 413, "type 1 is for the server"),
    (errors.BodyTooLong(), 414, "body too long"),
    (errors.BodyInvalid(), 415, "body must not contain U+0000"),
    (errors.StorageUnavailable(), 420, "not stored: storage unavailable"),
    (errors.StorageFull(), 421, "not stored: storage full"),
    (errors.StorageUnsure(), 422, "not known to be stored: no answer from storage"),
]

DISCONNECTS = [
    (errors.Disconnect(), 1008, "policy violation"),
    (errors.PeerClosed(1000), 1000, "closed"),
    (errors.GoingAway(), 1001, "server shutdown"),
    (errors.ProtocolError(), 1002, "protocol error"),
    (errors.UnsupportedData(), 1003, "binary frames are not supported"),
    (errors.ConnectionLost(), 1006, "connection lost"),
    (errors.InvalidText(), 1007, "invalid UTF-8"),
    (errors.PolicyViolation(), 1008, "policy violation"),
    (errors.MessageTooBig(), 1009, "message too big"),
    (errors.ServerFault(), 1011, "internal server error"),
    (errors.ServiceRestart(), 1012, "server restart"),
    (errors.ConnectionExpired(), 3005, "connection expired"),
    (errors.SubscriptionExpired(), 3006, "subscription expired"),
    (errors.Slow(), 3008, "slow"),
    (errors.InsufficientState(), 3010, "insufficient state"),
    (errors.NoPong(), 3012, "no pong"),
    (errors.TooManyRequests(), 3013, "too many requests"),
    (errors.InvalidToken(), 3500, "invalid token"),
    (errors.Malformed(), 3501, "bad request"),
    (errors.Stale(), 3502, "stale"),
    (errors.ForceDisconnect(), 3503, "force disconnect"),
    (errors.NotPermitted(), 3507, "permission denied"),
]


@pytest.mark.parametrize(("error", "code", "text"), CHAT_ERRORS)
def test_a_chat_error_has_its_number_and_text(error: ChatError, code: int, text: str) -> None:
    assert (error.code, str(error)) == (code, text)


@pytest.mark.parametrize(("end", "code", "reason"), DISCONNECTS)
def test_a_disconnect_has_its_code_and_reason(end: Disconnect, code: int, reason: str) -> None:
    assert (end.code, str(end)) == (code, reason)


@pytest.mark.parametrize("base", [ChatError, Disconnect])
def test_the_tables_above_are_complete(base: type[Exception]) -> None:
    defined = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, base)}
    assert defined == {type(row[0]) for row in [*CHAT_ERRORS, *DISCONNECTS] if isinstance(row[0], base)}


def test_no_two_chat_errors_share_a_number() -> None:
    assert len({code for _, code, _ in CHAT_ERRORS}) == len(CHAT_ERRORS)


def test_errors_and_disconnects_are_two_trees() -> None:
    assert not any(isinstance(error, Disconnect) for error, _, _ in CHAT_ERRORS)
    assert not any(isinstance(end, ChatError) for end, _, _ in DISCONNECTS)


@pytest.mark.parametrize("end", [row[0] for row in DISCONNECTS])
def test_a_reason_of_ours_fits_into_a_close_frame(end: Disconnect) -> None:
    assert 0 < len(str(end).encode()) <= errors.REASON_BYTES


@pytest.mark.parametrize("end", [row[0] for row in DISCONNECTS])
def test_no_reason_of_ours_is_json(end: Disconnect) -> None:
    """Clients would take it for advice of their protocol's first version."""
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(str(end))


def test_plugins_refuse_and_disconnect_with_their_own_words() -> None:
    assert (ChatError("no links, please").code, str(ChatError("no links, please"))) == (400, "no links, please")
    assert (Disconnect("go away").code, str(Disconnect("go away"))) == (1008, "go away")


def test_an_operators_program_has_its_own_code_and_words() -> None:
    end = ForceDisconnect("kicked", 4001)
    assert (end.code, str(end)) == (4001, "kicked")
    assert ForceDisconnect().code == 3503


def test_a_peer_is_answered_with_its_own_code() -> None:
    assert PeerClosed(4321).code == 4321


def test_a_peer_that_gave_no_code_is_answered_with_1000() -> None:
    assert PeerClosed(0).code == 1000


def test_one_peers_code_is_not_the_next_ones() -> None:
    PeerClosed(4321)
    assert PeerClosed(0).code == 1000


@pytest.mark.parametrize(("seconds", "shown"), [(0.04, "0.1"), (0.5, "0.5"), (0.51, "0.6"), (12.0, "12.0")])
def test_too_many_messages_tells_when_to_try_again(seconds: float, shown: str) -> None:
    assert str(TooManyMessages(seconds)) == f"too many messages, retry in {shown} s"
