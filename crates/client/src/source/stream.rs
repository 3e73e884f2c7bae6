//! Reading with limits.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    rc::Rc,
};

use tokio_util::sync::CancellationToken;

/// The most bytes that one key, or what stands between two, may take. Keys have some hundred; with thousands
/// of visited countries some ten thousand.
pub(super) const LONGEST: usize = 256 << 10;

/// A reader that fails after it was told to stop.
pub(super) struct Stoppable<R> {
    inner: R,
    stop: CancellationToken,
}

impl<R> Stoppable<R> {
    pub(super) fn new(inner: R, stop: &CancellationToken) -> Self {
        Self { inner, stop: stop.clone() }
    }
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() { Err(io::Error::other("stopped")) } else { self.inner.read(buffer) }
    }
}

/// How many bytes may still be read until the next key.
pub(super) struct Budget(Rc<Cell<usize>>);

impl Budget {
    pub(super) fn renew(&self) {
        self.0.set(LONGEST);
    }
}

/// A reader that fails when its [`Budget`] is used up.
pub(super) struct Stream<R> {
    inner: R,
    left: Rc<Cell<usize>>,
}

impl<R> Stream<R> {
    pub(super) fn new(inner: R) -> (Self, Budget) {
        let left = Rc::new(Cell::new(LONGEST));
        (Self { inner, left: left.clone() }, Budget(left))
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: BufRead> BufRead for Stream<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let left = self.left.get();
        let bytes = self.inner.fill_buf()?;
        if left == 0 && !bytes.is_empty() {
            let what = format!("a key, or the text between two keys, has more than {LONGEST} bytes");
            return Err(io::Error::other(what));
        }
        Ok(&bytes[..bytes.len().min(left)])
    }

    fn consume(&mut self, amount: usize) {
        self.left.set(self.left.get() - amount);
        self.inner.consume(amount);
    }
}

impl<R: BufRead> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let amount = bytes.len().min(buffer.len());
        buffer[..amount].copy_from_slice(&bytes[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}
