"""Syrup read from a stream a byte at a time, and put together by hand. Written from the description of the
format; it shares no line with the library."""


class Symbol(str):
    """`N'…`, to be told from a string."""


class Record(list):
    """`<label fields…>`, to be told from a list."""


CLOSERS = {b"[": b"]", b"{": b"}", b"<": b">"}


def read(take):
    """One value, and the bytes it had. `take(n)` gives exactly so many bytes of the stream, and no more are
    asked for than the value has."""
    read_so_far = bytearray()

    def next_bytes(count):
        taken = take(count)
        assert len(taken) == count
        read_so_far.extend(taken)
        return taken

    return value(next_bytes(1), next_bytes), bytes(read_so_far)


def value(first, take):
    if first in b"tf":
        return first == b"t"
    if first in CLOSERS:
        items, byte = [], take(1)
        while byte != CLOSERS[first]:
            items.append(value(byte, take))
            byte = take(1)
        if first == b"{":
            return list(zip(items[::2], items[1::2]))
        return Record(items) if first == b"<" else items
    number = b""
    while first.isdigit():
        number, first = number + first, take(1)
    assert number, f"{first!r} begins nothing"
    if first in b"+-":
        return int(number) if first == b"+" else -int(number)
    content = take(int(number)) if int(number) else b""
    if first == b":":
        return content
    assert first in b"\"'", f"{first!r} after a length"
    return content.decode() if first == b'"' else Symbol(content.decode())


def symbol(text):
    return b"%d'%b" % (len(text), text.encode())


def string(text):
    return b'%d"%b' % (len(text.encode()), text.encode())


def octets(content):
    return b"%d:%b" % (len(content), content)
