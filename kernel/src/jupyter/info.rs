//! `kernel_info_request`: <https://jupyter-client.readthedocs.io/en/stable/messaging.html#kernel-info>.

use jupyter_protocol::{CodeMirrorMode, HelpLink, KernelInfoReply, LanguageInfo, ReplyStatus};

/// Describes this kernel.
pub fn reply() -> KernelInfoReply {
    let link = |text: &str, url: &str| HelpLink {
        text: text.into(),
        url: url.into(),
    };
    KernelInfoReply {
        status: ReplyStatus::Ok,
        protocol_version: "5.4".into(),
        implementation: "cloze".into(),
        implementation_version: env!("CARGO_PKG_VERSION").into(),
        language_info: LanguageInfo {
            name: "rust".into(),
            version: String::new(),
            mimetype: Some("text/x-rustsrc".into()),
            file_extension: Some(".rs".into()),
            pygments_lexer: Some("rust".into()),
            codemirror_mode: Some(CodeMirrorMode::Simple("rust".into())),
            nbconvert_exporter: None,
        },
        banner: format!(
            "Cloze {}: masked language modelling in Rust notebooks",
            env!("CARGO_PKG_VERSION")
        ),
        help_links: vec![
            link(
                "The Rust standard library",
                "https://doc.rust-lang.org/std/",
            ),
            link("The Rust book", "https://doc.rust-lang.org/book/"),
        ],
        debugger: false,
        error: None,
    }
}
