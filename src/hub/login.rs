//! Logging in: the token is checked with the Hub, then stored where the Python library looks for it.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::http::{Client, Request};
use super::{Settings, Token};
use crate::files::Destination;
use crate::{Error, Result};

/// Whom a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Account {
    /// The user's name, the owner of what is pushed without another owner.
    pub name: String,
    /// The organisations that the user belongs to.
    pub organizations: Vec<String>,
    /// The name that the user gave the token.
    pub token_name: Option<String>,
    /// What the token may do: "read", "write" or "fineGrained".
    pub role: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    name: String,
    #[serde(default)]
    orgs: Vec<Value>,
    #[serde(default)]
    auth: Value,
}

pub(crate) fn whoami(client: &Client) -> Result<Account> {
    if client.settings().token.is_none() {
        return Err(Error::Hub(
            "not logged in: there is no token in HF_TOKEN and none is stored; log in with hub::login(token) or \
             notebook_login()"
                .to_owned(),
        ));
    }
    if client.settings().offline {
        return Err(offline("ask the Hub who you are"));
    }
    let request = Request::get(client.url("api/whoami-v2"), "check the token");
    let answer: Answer = client.json(&request)?;
    let token = &answer.auth["accessToken"];
    let word = |value: &Value| value.as_str().map(str::to_owned);
    Ok(Account {
        name: answer.name,
        organizations: answer
            .orgs
            .iter()
            .filter_map(|org| word(&org["name"]))
            .collect(),
        token_name: word(&token["displayName"]),
        role: word(&token["role"]),
    })
}

pub(crate) fn offline(what: &str) -> Error {
    Error::Hub(format!("could not {what}: HF_HUB_OFFLINE forbids requests"))
}

pub(crate) fn login(settings: &Settings, token: Token) -> Result<Account> {
    if token.secret().starts_with("api_org") {
        return Err(Error::argument(
            "token",
            "this is an organisation's token; log in with a user token",
        ));
    }
    let with_token = settings.clone().with_token(Some(token.clone()));
    let account = whoami(&Client::new(Arc::new(with_token)))?;
    store(&settings.token_path, &token, account.token_name.as_deref())?;
    if let Some(other) = &settings.token
        && *other != token
        && in_environment()
    {
        eprintln!(
            "note: HF_TOKEN is set to another token and takes precedence over the one just stored"
        );
    }
    Ok(account)
}

fn in_environment() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    set("HF_TOKEN") || set("HUGGING_FACE_HUB_TOKEN")
}

/// Writes the token to its file, and under its name to the file of all tokens.
fn store(path: &Path, token: &Token, name: Option<&str>) -> Result<()> {
    if let Some(name) = name.filter(|name| is_section_name(name)) {
        let all = stored_tokens(path);
        let old = match std::fs::read_to_string(&all) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io("read", &all, e)),
        };
        write_private(&all, &with_section(&old, name, token.secret()))?;
    }
    write_private(path, token.secret())
}

/// Returns the file of all tokens, next to the one with the current token.
fn stored_tokens(token_path: &Path) -> PathBuf {
    token_path.with_file_name("stored_tokens")
}

/// Returns whether the Python library can read a section of that name back.
fn is_section_name(name: &str) -> bool {
    !name.is_empty() && name != "DEFAULT" && !name.contains(['[', ']', '\n', '\r'])
}

/// Returns the INI text `old` with the section `name` replaced or added, sections in the order of their names.
fn with_section(old: &str, name: &str, secret: &str) -> String {
    let mut sections = std::collections::BTreeMap::new();
    let mut current: Option<String> = None;
    for line in old.lines().map(str::trim) {
        if let Some(section) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            current = Some(section.to_owned());
        } else if let (Some(section), Some((key, value))) = (&current, line.split_once(['=', ':']))
            && key.trim() == "hf_token"
        {
            sections.insert(section.clone(), value.trim().to_owned());
        }
    }
    sections.insert(name.to_owned(), secret.to_owned());
    let texts = sections
        .iter()
        .map(|(name, secret)| format!("[{name}]\nhf_token = {secret}\n\n"));
    texts.collect()
}

/// Atomically writes a file that only its owner can read. Devices and pipes are never replaced.
fn write_private(path: &Path, text: &str) -> Result<()> {
    super::cache::make_parent(path)?;
    crate::files::write_private(path, text.as_bytes())
}

pub(crate) fn logout(settings: &Settings) -> Result<()> {
    for path in [
        settings.token_path.clone(),
        stored_tokens(&settings.token_path),
    ] {
        // Through links, and never a device.
        let Destination::File(place) = Destination::of(&path)? else {
            continue;
        };
        match std::fs::remove_file(&place) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", path, e));
            }
            _ => {}
        }
    }
    if in_environment() {
        eprintln!("note: HF_TOKEN is still set, so this program stays logged in");
    }
    Ok(())
}

/// Asks the person at the notebook or terminal for a token, without showing it.
pub(crate) fn ask_for_token() -> Result<Token> {
    const PROMPT: &str = "Token (from https://huggingface.co/settings/tokens): ";
    let text = if crate::notebook::live::Host::current() != crate::notebook::live::Host::Plain {
        // The kernel reads this request from the cell's output and asks for a password.
        evcxr_input::get_password(PROMPT)
    } else if std::io::stdin().is_terminal() {
        rpassword::prompt_password(PROMPT)
            .map_err(|e| Error::Hub(format!("could not read the token: {e}")))?
    } else {
        return Err(Error::Hub(
            "notebook_login() needs a notebook or a terminal; use hub::login(token) or \
             set HF_TOKEN"
                .to_owned(),
        ));
    };
    Token::new(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_keeps_the_others() {
        let first = with_section("", "laptop", "hf_a");
        assert_eq!(first, "[laptop]\nhf_token = hf_a\n\n");
        let both = with_section(&first, "desk top", "hf_b");
        assert_eq!(
            both,
            "[desk top]\nhf_token = hf_b\n\n[laptop]\nhf_token = hf_a\n\n"
        );
        let again = with_section(&both, "laptop", "hf_c");
        assert_eq!(
            again,
            "[desk top]\nhf_token = hf_b\n\n[laptop]\nhf_token = hf_c\n\n"
        );
    }

    #[cfg(unix)]
    #[test]
    fn stored_tokens_are_readable_only_by_the_owner() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/token");
        store(&path, &Token::new("hf_x").unwrap(), Some("mine")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "hf_x");
        for file in [path.clone(), stored_tokens(&path)] {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
