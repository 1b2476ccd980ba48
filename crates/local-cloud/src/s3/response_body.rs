//! Streams an object's bytes to a response.
//!
//! If the file shrinks or changes meanwhile, the body ends with an error, never short or mixed: S3 returns one version.
//! (A rename over the file does not change the open version.)

use std::fs::File;
use std::io::{self, Read as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead as _, ReadBuf};

use super::local::SMALL_BYTES;
use super::object_files::Stat;

type StdError = Box<dyn std::error::Error + Send + Sync>;

/// One read. At this size, the switch to a blocking thread costs little in comparison.
const READ_BYTES: usize = 256 * 1024;

/// A range of a file, read on demand.
struct FileBody {
    file: lighthpc_runtime::File,
    /// The same open file, for its metadata without blocking.
    watched: File,
    etag: String,
    left: u64,
    buffer: Vec<u8>,
}

/// Returns the body of a range that starts at the file's position. Blocks.
pub(super) fn body_of(mut file: File, stat: &Stat, length: u64) -> io::Result<s3s::Body> {
    if length > SMALL_BYTES {
        return Ok(s3s::Body::http_body(FileBody::new(file, stat, length)?));
    }
    let mut bytes = Vec::new();
    (&mut file).take(length).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < length {
        return Err(shrunk());
    }
    check(&file, &stat.etag)?;
    Ok(Bytes::from(bytes).into())
}

fn shrunk() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file of this object has shrunk")
}

fn check(file: &File, etag: &str) -> io::Result<()> {
    if Stat::from_metadata(&file.metadata()?).etag == etag {
        return Ok(());
    }
    Err(io::Error::other("the file of this object changed while it was read"))
}

impl FileBody {
    /// Starts at the file's position.
    fn new(file: File, stat: &Stat, length: u64) -> io::Result<Self> {
        let watched = file.try_clone()?;
        let mut file = lighthpc_runtime::File::from_std(file);
        file.set_max_buf_size(READ_BYTES);
        Ok(Self { file, watched, etag: stat.etag.clone(), left: length, buffer: Vec::new() })
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let wanted = usize::try_from(this.left).unwrap_or(usize::MAX).min(READ_BYTES);
        this.buffer.resize(wanted, 0);
        let mut buffer = ReadBuf::new(&mut this.buffer);
        let outcome = ready!(Pin::new(&mut this.file).poll_read(cx, &mut buffer));
        let count = buffer.filled().len();
        let read = outcome.and_then(|()| {
            if count == 0 {
                return Err(shrunk());
            }
            this.left -= count as u64;
            if this.left == 0 { check(&this.watched, &this.etag) } else { Ok(()) }
        });
        if let Err(error) = read {
            // An error is the last frame.
            this.left = 0;
            return Poll::Ready(Some(Err(error.into())));
        }
        let mut bytes = std::mem::take(&mut this.buffer);
        bytes.truncate(count);
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
