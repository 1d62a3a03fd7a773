//! A running server for one test, its variants, and a client.
use bitdelta_delta::{
    BitDeltaConfig,
    file::{Info, LinearDelta, Variant},
    quantize::quantize,
};
use bitdelta_engine::{Engine, EngineOptions, Model, ModelOptions, Registry, RegistryOptions};
use bitdelta_model::Base;
use bitdelta_server::{Auth, Defaults, HttpOptions, Service};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::oneshot;
use ureq::Agent;

/// The base's name, after its folder.
pub const BASE: &str = "tiny-llama";

/// A server that stops when dropped.
pub struct Node {
    pub url: String,
    pub variants_dir: tempfile::TempDir,
    pub service: Arc<Service>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// With variants, no limits worth mentioning.
    pub fn start() -> Self {
        Self::with(EngineOptions::default(), true)
    }

    pub fn with(options: EngineOptions, variants: bool) -> Self {
        Self::stopping_within(Duration::from_secs(20), options, variants)
    }

    /// A server that waits this long for running answers once it is asked to stop.
    pub fn stopping_within(limit: Duration, options: EngineOptions, variants: bool) -> Self {
        Self::new(limit, options, variants, Defaults::default())
    }

    /// A server whose loaded variants take this many bytes at most.
    pub fn within(resident_bytes: u64) -> Self {
        let options = RegistryOptions { resident_bytes: Some(resident_bytes) };
        Self::made(
            HttpOptions::default(),
            EngineOptions::default(),
            true,
            options,
            Defaults::default(),
            Auth::default(),
        )
    }

    /// A server that asks who calls.
    pub fn guarded(auth: Auth) -> Self {
        let (engine, variants) = (EngineOptions::default(), RegistryOptions::default());
        Self::made(HttpOptions::default(), engine, true, variants, Defaults::default(), auth)
    }

    /// A server with other limits or TLS on its connections.
    pub fn over(http: HttpOptions) -> Self {
        let (engine, variants) =
            (EngineOptions { max_batch: 1, ..EngineOptions::default() }, RegistryOptions::default());
        Self::made(http, engine, true, variants, Defaults::default(), Auth::default())
    }

    /// Everything said but the memory for variants.
    pub fn new(limit: Duration, options: EngineOptions, variants: bool, defaults: Defaults) -> Self {
        let http = HttpOptions { shutdown: limit, ..HttpOptions::default() };
        Self::made(http, options, variants, RegistryOptions::default(), defaults, Auth::default())
    }

    fn made(
        http: HttpOptions,
        options: EngineOptions,
        variants: bool,
        cache: RegistryOptions,
        defaults: Defaults,
        auth: Auth,
    ) -> Self {
        let variants_dir = tempfile::tempdir().expect("a folder");
        let model = Arc::new(
            Model::load(Arc::new(base(BASE)), ModelOptions { threads: 1, ..ModelOptions::default() }).expect("a model"),
        );
        let engine = Engine::start(Arc::clone(&model), options).expect("an engine");
        let dir = Some(variants_dir.path().to_owned());
        let registry = variants.then(|| Registry::with_options(model, dir, cache).expect("a registry"));
        let service = Service::new(engine, registry, vec!["qwen3-4b".to_owned()], defaults).with_auth(auth);
        let service = Arc::new(service);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        // Few threads for what blocks, so that a test sees when it uses them up.
        let runtime = runtime.worker_threads(2).max_blocking_threads(12).enable_all().build().expect("threads");
        let listener = runtime.block_on(bitdelta_server::bind("127.0.0.1", 0, false)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&service);
        let thread = std::thread::spawn(move || {
            let stopped = async move { stopped.await.unwrap_or_default() };
            runtime.block_on(bitdelta_server::serve(listener, serving, stopped, http));
        });
        Self { url, variants_dir, service, stop: Some(stop), thread: Some(thread) }
    }

    /// Asks the server to stop, as a signal does.
    pub fn ask_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _already_stopped = stop.send(());
        }
    }

    /// Waits until it has stopped.
    pub fn join(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a clean stop");
        }
    }

    /// Writes a variant of `base` into the folder. Different seeds answer differently.
    pub fn publish(&self, user: &str, seed: u64) -> PathBuf {
        let path = self.variants_dir.path().join(format!("{user}.safetensors"));
        write_variant(&path, BASE, seed);
        path
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        answer(agent().get(format!("{}{path}", self.url)).call())
    }

    /// The value of a series of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = agent().get(format!("{}/metrics", self.url)).call().expect("an answer").body_mut().read_to_string();
        let text = text.expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    pub fn delete(&self, path: &str) -> (u16, Value) {
        answer(agent().delete(format!("{}{path}", self.url)).call())
    }

    pub fn put(&self, path: &str, body: &[u8]) -> (u16, Value) {
        answer(agent().put(format!("{}{path}", self.url)).send(body))
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_raw(path, body.to_string().as_bytes())
    }

    pub fn post_raw(&self, path: &str, body: &[u8]) -> (u16, Value) {
        let request = agent().post(format!("{}{path}", self.url)).header("content-type", "application/json");
        answer(request.send(body))
    }

    /// A chat of one question with more fields.
    pub fn chat(&self, more: Value) -> (u16, Value) {
        self.post("/v1/chat/completions", &question(more))
    }

    /// The answer's text.
    pub fn said(&self, more: Value) -> String {
        let (status, body) = self.chat(more);
        assert_eq!(status, 200, "{body}");
        body["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
    }

    /// The `data:` payloads of a streamed chat, as they come.
    pub fn stream(&self, more: Value) -> impl Iterator<Item = String> + use<> {
        let mut body = question(more);
        body["stream"] = json!(true);
        let response = agent().post(format!("{}/v1/chat/completions", self.url)).send_json(&body).expect("an answer");
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        lines.filter_map(|line| line.expect("a line").strip_prefix("data: ").map(str::to_owned))
    }
}

/// One key's way to a server.
pub struct Client<'a> {
    node: &'a Node,
    key: String,
}

impl Node {
    /// The server as the holder of a key sees it.
    pub fn with_key(&self, key: impl Into<String>) -> Client<'_> {
        Client { node: self, key: key.into() }
    }
}

impl Client<'_> {
    pub fn get(&self, path: &str) -> (u16, Value) {
        answer(agent().get(self.at(path)).header("authorization", self.bearer()).call())
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(agent().post(self.at(path)).header("authorization", self.bearer()).send_json(body))
    }

    pub fn chat(&self, more: Value) -> (u16, Value) {
        self.post("/v1/chat/completions", &question(more))
    }

    pub fn put(&self, path: &str, body: &[u8]) -> (u16, Value) {
        answer(agent().put(self.at(path)).header("authorization", self.bearer()).send(body))
    }

    pub fn delete(&self, path: &str) -> (u16, Value) {
        answer(agent().delete(self.at(path)).header("authorization", self.bearer()).call())
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.node.url)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.key)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            let _failed_elsewhere = thread.join();
        }
    }
}

/// A short greedy question to the base unless `more` says otherwise.
pub fn question(more: Value) -> Value {
    let mut body = json!({"model": BASE, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 12});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// A golden model by its folder's name.
pub fn base(name: &str) -> Base {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    Base::open(folder.to_str().expect("UTF-8")).expect("a golden model")
}

/// The bytes of [`write_variant`]'s file.
pub fn variant_bytes(seed: u64) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    write_variant(file.path(), BASE, seed);
    std::fs::read(file.path()).expect("bytes")
}

/// A 1-bit variant of a golden model with deltas as large as the weights.
pub fn write_variant(path: &Path, base_name: &str, seed: u64) {
    let base = base(base_name);
    let config = BitDeltaConfig { clip_outliers: false, ..BitDeltaConfig::default() };
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    let linears = base.linears().iter().map(|linear| {
        let delta: Vec<f32> = (0..linear.rows * linear.cols).map(|_| next()).collect();
        let part = quantize(&linear.name, &delta, linear.rows, linear.cols, &config).expect("quantised");
        LinearDelta { rows: linear.rows, cols: linear.cols, parts: vec![part], relative_error: None }
    });
    let linears = linears.collect();
    let info = Info::new(base.fingerprint(), &base.name, config.clone(), "");
    Variant::new(info, linears).write(path).expect("written");
}

pub fn agent() -> Agent {
    Agent::new_with_config(Agent::config_builder().http_status_as_error(false).build())
}

fn answer(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, Value) {
    let mut response = result.expect("an answer");
    let status = response.status().as_u16();
    (status, response.body_mut().read_json().expect("a JSON body"))
}
