//! A variant's way in: streamed to a file beside the others, never whole in memory.
use crate::ApiError;
use axum::{body::Body, http::StatusCode};
use futures_util::StreamExt;
use std::{io::Write, time::Duration};
use tempfile::NamedTempFile;

/// Longest time between two pieces.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for all of it.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(900);

/// Writes a body of at most `limit` bytes to `file`.
///
/// # Errors
/// 413 for a longer one, 408 for one that does not come, 400 where it breaks off, 507 when it cannot be written.
pub async fn receive(body: Body, mut file: NamedTempFile, limit: u64) -> Result<NamedTempFile, ApiError> {
    let late = || ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the upload stopped coming");
    let whole = async {
        let (mut pieces, mut length) = (body.into_data_stream(), 0);
        while let Some(piece) = tokio::time::timeout(PIECE_TIMEOUT, pieces.next()).await.map_err(|_| late())? {
            let piece =
                piece.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "unreadable_body", error.to_string()))?;
            length += piece.len() as u64;
            if length > limit {
                let message =
                    format!("the variant is larger than {limit} bytes, which is all that this server may hold");
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
            }
            // Pieces are small and go to the page cache; the disk is waited for when the version is made.
            file.write_all(&piece).map_err(|error| {
                tracing::error!(%error, "an upload cannot be written");
                let message = "the variant cannot be written; the server's log has the details";
                ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "cannot_store", message)
            })?;
        }
        Ok(file)
    };
    tokio::time::timeout(WHOLE_TIMEOUT, whole).await.map_err(|_| late())?
}
