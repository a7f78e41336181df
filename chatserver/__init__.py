"""A chat server on aiohttp. What stands here is what plugins may rely on."""

from chatserver.chain import Handler, Middleware
from chatserver.client import Client
from chatserver.errors import ChatError, Disconnect
from chatserver.message import Changes, Command, Event, Joined, Left, Message, Notice, Publish

__version__ = "0.1.0"

__all__ = [
    "Changes",
    "ChatError",
    "Client",
    "Command",
    "Disconnect",
    "Event",
    "Handler",
    "Joined",
    "Left",
    "Message",
    "Middleware",
    "Notice",
    "Publish",
]
