"""aiohttp, imported without the certificate authorities of this machine.

On import aiohttp makes two TLS contexts, for calls that name none, and reads all authorities for each
(aiohttp/connector.py: `_SSL_CONTEXT_VERIFIED`, `_SSL_CONTEXT_UNVERIFIED`, 3.14): 100 ms of CPU, and 2 MiB for as long
as the process lives. Every call of ours names its own context (`Access.tls`, `Place.tls`); one that forgot it would
trust nobody, and fail. The first import in a process decides, so `gpusharing.controller` imports this module before all
others, kopf included.
"""

import os

# Where OpenSSL looks for authorities instead of its own places (SSL_CTX_set_default_verify_paths(3)).
_TRUST = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_before = {name: os.environ.get(name) for name in _TRUST}
os.environ.update(dict.fromkeys(_TRUST, os.devnull))
try:
    import aiohttp
finally:  # code that asks for the machine's authorities later still gets them
    for _name, _value in _before.items():
        if _value is None:
            del os.environ[_name]
        else:
            os.environ[_name] = _value

__all__ = ["aiohttp"]
