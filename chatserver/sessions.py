"""The sessions of the Centrifuge protocol in this process, for those who act on users from outside."""

from chatserver.session import Session


class Sessions:
    """All of them."""

    def __init__(self) -> None:
        self._sessions: set[Session] = set()

    def add(self, session: Session) -> None:
        """`session` is one of them until it is removed."""
        self._sessions.add(session)

    def remove(self, session: Session) -> None:
        """The connection is over."""
        self._sessions.remove(session)
        session.close()

    def of(self, user: str, client: str = "") -> list[Session]:
        """Those of `user` that are connected, or the one of them with the connection's id `client`."""
        return [
            session
            for session in self._sessions
            if session.connected and session.user == user and client in ("", session.client.id)
        ]
