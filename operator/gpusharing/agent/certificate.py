"""A TLS certificate that the process makes itself, with the OpenSSL that Python is linked with."""

import _ssl
import base64
import ctypes
import os
import secrets
import ssl
from typing import Any

DAYS_VALID = 3650  # each process makes a certificate of its own, so this need only outlast a process


class _Pointer(ctypes.c_void_p):
    """The address of an object of OpenSSL. ctypes would turn a plain c_void_p into an int, and pass it on as 32 bits."""


def self_signed(name: str) -> ssl.SSLContext:
    """Return a context for a TLS server with a new P-256 key and a self-signed certificate for `name`.

    The name has at most 64 characters. Python's `ssl` makes no certificates, and the image has neither the library
    `cryptography` nor the program `openssl`. The key never leaves the memory of the process.

    Raises ssl.SSLError if OpenSSL fails, and AttributeError if Python is not linked with a shared library of OpenSSL
    3.0 or newer.
    """
    # OpenSSL's objects are never freed, because a process makes only one of each.
    key = _call(_Pointer, "EVP_PKEY_Q_keygen", None, None, b"EC", b"P-256")
    certificate = _call(_Pointer, "X509_new")
    for field, days in (("notBefore", 0), ("notAfter", DAYS_VALID)):
        moment = _call(_Pointer, f"X509_getm_{field}", certificate)
        _call(_Pointer, "X509_gmtime_adj", moment, ctypes.c_long(days * 24 * 3600))
    serial = _call(_Pointer, "X509_get_serialNumber", certificate)
    _call(ctypes.c_int, "ASN1_INTEGER_set_uint64", serial, ctypes.c_uint64(secrets.randbits(63)))
    _call(ctypes.c_int, "X509_set_version", certificate, ctypes.c_long(2))  # which means version 3
    subject, utf8 = _call(_Pointer, "X509_get_subject_name", certificate), 0x1000
    _call(ctypes.c_int, "X509_NAME_add_entry_by_txt", subject, b"CN", utf8, name.encode(), -1, -1, 0)
    _call(ctypes.c_int, "X509_set_issuer_name", certificate, subject)
    _call(ctypes.c_int, "X509_set_pubkey", certificate, key)
    _call(ctypes.c_int, "X509_sign", certificate, key, _call(_Pointer, "EVP_sha256"))
    encoded = base64.encodebytes(_encoded("i2d_PrivateKey", key)).decode()
    text = f"-----BEGIN EC PRIVATE KEY-----\n{encoded}-----END EC PRIVATE KEY-----\n"
    text += ssl.DER_cert_to_PEM_cert(_encoded("i2d_X509", certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    file = os.memfd_create("certificate")  # load_cert_chain takes only the path of a file
    try:
        os.write(file, text.encode())
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context


def _encoded(name: str, source: _Pointer) -> bytes:
    buffer = ctypes.create_string_buffer(_call(ctypes.c_int, name, source, None))
    _call(ctypes.c_int, name, source, ctypes.byref(ctypes.cast(buffer, _Pointer)))
    return buffer.raw


def _call(kind: type, name: str, *arguments: object) -> Any:
    """Call a function of OpenSSL. Each of those used here reports a failure as NULL, zero or a negative number."""
    function = getattr(ctypes.CDLL(_ssl.__file__), name)
    function.restype = kind
    result = function(*arguments)
    if not result or (isinstance(result, int) and result < 0):
        raise ssl.SSLError(f"OpenSSL failed in {name}")
    return result
