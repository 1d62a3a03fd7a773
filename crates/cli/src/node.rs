//! Talking to a running server from the command line.
use crate::{Context, Error};
use serde_json::Value;
use std::{io::Read, time::Duration};
use ureq::{Agent, Body, RequestBuilder, http::Response};

/// Where the running server is.
#[derive(Debug, Clone, clap::Args)]
pub struct NodeArgs {
    /// The running server's address
    #[arg(long, value_name = "URL", conflicts_with = "port")]
    url: Option<String>,
    /// The running server's port on this machine
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Key for a server that asks for one
    #[arg(long, value_name = "KEY", env = "BITDELTA_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

impl NodeArgs {
    /// A client of that server.
    pub fn client(&self) -> Node {
        Node::new(self.url.clone().unwrap_or_else(|| format!("http://127.0.0.1:{}", self.port)))
            .with_key(self.api_key.as_deref())
    }
}

/// A running server.
#[derive(Debug, Clone)]
pub struct Node {
    url: String,
    agent: Agent,
    authorization: Option<String>,
}

impl Node {
    /// The server at `url`, with or without a slash or `/v1` at its end.
    pub fn new(url: String) -> Self {
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let url = if url.contains("://") { url } else { format!("http://{url}") };
        let config = Agent::config_builder().http_status_as_error(false).timeout_connect(Some(Duration::from_secs(5)));
        Self { url, agent: Agent::new_with_config(config.build()), authorization: None }
    }

    /// Sends this key with every request.
    #[must_use]
    pub fn with_key(self, key: Option<&str>) -> Self {
        Self { authorization: key.map(|key| format!("Bearer {key}")), ..self }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// No server there, or what it answers as an error.
    pub fn get(&self, path: &str) -> Result<Value, Error> {
        self.read(self.signed(self.agent.get(self.at(path))).call())
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.read(self.signed(self.agent.post(self.at(path))).send_json(body))
    }

    /// `POST path` whose answer is a stream of server-sent events.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn stream(&self, path: &str, body: &Value) -> Result<impl Read + 'static, Error> {
        let response = self.accepted(self.signed(self.agent.post(self.at(path))).send_json(body))?;
        Ok(response.into_body().into_reader())
    }

    fn signed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.authorization {
            Some(value) => request.header("authorization", value),
            None => request,
        }
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn read(&self, result: Result<Response<Body>, ureq::Error>) -> Result<Value, Error> {
        self.accepted(result)?.body_mut().read_json().context(format!("reading the answer of {}", self.url))
    }

    /// A response with a good status; the server's own message otherwise.
    fn accepted(&self, result: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Error> {
        let mut response = result.context(match self.url.starts_with("https://") {
            true => format!("{} was not reached, or has no certificate that this machine trusts", self.url),
            false => {
                format!("no server answers at {}; start one with `bitdelta serve` or `hanzo-node start`", self.url)
            }
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body: Option<Value> = response.body_mut().read_json().ok();
        let message = body.as_ref().and_then(|body| body["error"]["message"].as_str());
        Err(Error::Failed(message.map_or_else(|| format!("{} answers {status}", self.url), str::to_owned)))
    }
}

/// A path segment with everything but letters, digits and `-._~` percent-encoded.
pub fn segment(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_as_people_write_them() {
        for url in ["localhost:8080", "http://localhost:8080/", "http://localhost:8080/v1"] {
            assert_eq!(Node::new(url.to_owned()).at("/health"), "http://localhost:8080/health");
        }
    }

    #[test]
    fn a_segment_cannot_leave_its_place() {
        assert_eq!(segment("user_1@x/../y"), "user_1%40x%2F..%2Fy");
    }

    #[test]
    fn no_server_is_an_error_that_says_how_to_start_one() {
        let error = Node::new("http://127.0.0.1:1".to_owned()).get("/health").unwrap_err();
        assert!(error.to_string().contains("bitdelta serve"), "{error}");
    }
}
