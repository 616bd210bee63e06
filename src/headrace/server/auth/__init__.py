"""Who is asking: API keys, tokens and tickets become a `Principal`, or one of the errors under `AuthError`.

authenticator   all of it together, as the doors use it
credential      what a request presents, and how it is kept out of logs
api_keys        the file of keys
tokens          JWTs: made for development, verified always
tickets         for browsers, which cannot send a header with EventSource or WebSocket
peer            which address is asking, behind proxies or not
bind            what may be served on which address
private_file    files only their owner reads, written whole or not at all
watched         a file read again when it has changed
"""

from headrace.server.auth.api_keys import ApiKey, KeyFile, NewKey
from headrace.server.auth.authenticator import AuthConfig, Authenticator
from headrace.server.auth.bind import check_bind, is_loopback
from headrace.server.auth.credential import redact_query
from headrace.server.auth.peer import client_address
from headrace.server.auth.tickets import Tickets
from headrace.server.auth.tokens import TokenIssuer, issue_token, load_secret, own_issuer

__all__ = [
    "ApiKey",
    "AuthConfig",
    "Authenticator",
    "KeyFile",
    "NewKey",
    "Tickets",
    "TokenIssuer",
    "check_bind",
    "client_address",
    "is_loopback",
    "issue_token",
    "load_secret",
    "own_issuer",
    "redact_query",
]
