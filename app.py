"""For `adev runserver`, which looks for the factory here."""

from chatserver.app import create_app

__all__ = ["create_app"]
