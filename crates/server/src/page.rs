//! The page at `/`: four static files inside the binary, open to all. It holds nothing of anybody's: whatever it shows it
//! asks for as any other client does, with the key that its reader types.
//!
//! The policy below lets it run its own script and style and talk to its own server, and nothing else. Texts of models and
//! users become text nodes; `require-trusted-types-for` has the browser refuse to take any text for HTML.
use axum::{
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};

/// What a browser may do with the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// Sent with each of the files. They change with the binary, so a copy is asked about before it is used again.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-cache"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// `GET /`
pub async fn index() -> Response {
    file("text/html; charset=utf-8", include_str!("page/index.html"))
}

/// `GET /page/page.js`
pub async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page/page.js"))
}

/// `GET /page/page.css`
pub async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("page/page.css"))
}

/// `GET /page/icon.svg`
pub async fn icon() -> Response {
    file("image/svg+xml", include_str!("page/icon.svg"))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let mut response = ([(header::CONTENT_TYPE, kind)], text).into_response();
    let headers = HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value)));
    response.headers_mut().extend(headers);
    response
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_no_other_host_and_holds_no_script_or_style_inline() {
        let html = include_str!("page/index.html");
        for inline in ["<style", "style=", "onclick", "onload", "onsubmit", "javascript:", "http://", "https://"] {
            assert!(!html.contains(inline), "{inline}");
        }
        assert_eq!(html.matches("<script").count(), html.matches("<script type=\"module\" src=").count());
        let script = include_str!("page/page.js");
        for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage", "://"]
        {
            // The one address with a scheme is the name of SVG.
            assert!(!script.replace("http://www.w3.org/2000/svg", "").contains(markup), "{markup}");
        }
    }
}
