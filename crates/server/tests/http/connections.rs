//! Connections: TLS, browsers of other origins, and clients that send or read too slowly.
use crate::node::{Node, agent, question};
use bitdelta_server::{HttpOptions, http_options};
use serde_json::json;
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

fn connect(node: &Node) -> TcpStream {
    let socket = TcpStream::connect(node.url.trim_start_matches("http://")).expect("connected");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    socket
}

#[test]
fn a_head_that_never_ends_is_not_waited_for() {
    let node = Node::over(HttpOptions { head_timeout: Duration::from_millis(100), ..HttpOptions::default() });
    let mut slow = connect(&node);
    slow.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-slow:").expect("sent");
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).expect("the server closes");
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
    assert_eq!(node.get("/health").0, 200);
}

#[test]
fn a_client_that_does_not_read_is_let_go() {
    let node = Node::over(HttpOptions { write_timeout: Duration::from_millis(200), ..HttpOptions::default() });
    // More than the system's buffers take: many streamed requests, one after another, on a connection nobody reads.
    let body = question(json!({"stream": true, "n": 8, "max_tokens": 400, "temperature": 1.0, "seed": 1})).to_string();
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut rude = connect(&node);
    rude.set_write_timeout(Some(Duration::from_secs(5))).expect("set");
    let deadline = Instant::now() + Duration::from_secs(120);
    // A closed connection shows as a failed write, or as an idle engine with requests unanswered.
    for _ in 0..400 {
        if rude.write_all(format!("{head}{body}").as_bytes()).is_err() {
            break;
        }
        assert!(Instant::now() < deadline, "it is still served");
    }
    drop(rude);
    assert_eq!(node.chat(json!({})).0, 200);
}

#[test]
fn only_so_many_connections_are_open_and_the_next_waits_for_its_turn() {
    let node = Node::over(HttpOptions { max_connections: 1, ..HttpOptions::default() });
    let first = connect(&node);
    let url = format!("{}/health", node.url);
    let second = std::thread::spawn(move || agent().get(url).call().expect("an answer").status().as_u16());
    drop(first);
    assert_eq!(second.join().expect("answered"), 200);
}

#[test]
fn pages_of_other_origins_may_call_only_where_the_operator_says_so() {
    let preflight = |node: &Node, origin: &str| {
        let request = ureq::http::Request::options(format!("{}/v1/chat/completions", node.url));
        let request = request.header("origin", origin).header("access-control-request-method", "POST");
        let request = request.header("access-control-request-headers", "authorization,content-type");
        let response = agent().run(request.body(()).expect("a request")).expect("an answer");
        response.headers().get("access-control-allow-origin").map(|value| value.to_str().expect("text").to_owned())
    };
    let app = "https://app.example";
    assert_eq!(preflight(&Node::over(HttpOptions::default()), app), None);
    let cors = http_options::cors(&[app.to_owned()]).expect("an origin");
    let node = Node::over(HttpOptions { cors, ..HttpOptions::default() });
    assert_eq!(preflight(&node, app).as_deref(), Some(app));
    assert_eq!(preflight(&node, "https://evil.example"), None);
}

#[test]
fn with_a_certificate_it_speaks_tls_and_nothing_else() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http/tls");
    let tls = http_options::tls(&folder.join("cert.pem"), &folder.join("key.pem")).expect("a certificate");
    let http = HttpOptions { tls: Some(tls), head_timeout: Duration::from_millis(300), ..HttpOptions::default() };
    let node = Node::over(http);
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::from_pem_file(folder.join("cert.pem")).expect("a certificate");
    roots.add(trusted).expect("a root");
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    let session = ClientConnection::new(Arc::new(client), name).expect("a session");
    let mut stream = StreamOwned::new(session, connect(&node));
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"status\":\"ok\""), "{answer}");
    // Plain HTTP, and a handshake that does not come.
    for sent in [&b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"[..], b""] {
        let mut plain = connect(&node);
        plain.write_all(sent).expect("sent");
        let mut answer = Vec::new();
        plain.read_to_end(&mut answer).expect("the server closes");
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
}
