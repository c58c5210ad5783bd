//! The words that a notebook uses, with the settings of the environment.

use std::path::Path;

use super::login::ask_for_token;
use super::{Account, Hub, PushOptions, Pushed};
use crate::Result;

/// Logs in: verifies `token` with the Hub and stores it, readable only by its owner, where the Python library keeps it
/// (`HF_TOKEN_PATH`, else `HF_HOME/token`).
///
/// # Errors
/// When the Hub does not know the token or can't be reached; what was stored before stays then.
///
/// ```no_run
/// use cloze::prelude::*;
///
/// let account = hub::login(&std::fs::read_to_string("token").unwrap())?;
/// println!("logged in as {}", account.name);
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn login(token: &str) -> Result<Account> {
    Hub::from_env()?.login(token)
}

/// Like [`login`], with a token that is asked for without being shown: by the notebook's password field, or in the terminal.
///
/// # Errors
/// Like [`login`], and when there is neither a notebook nor a terminal.
///
/// ```no_run
/// use cloze::prelude::*;
///
/// notebook_login()?;
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn notebook_login() -> Result<Account> {
    Hub::from_env()?.login(ask_for_token()?.secret())
}

/// Returns whose token is in use.
///
/// # Errors
/// If you are not logged in, the token is wrong or expired, or the Hub can't be reached.
pub fn whoami() -> Result<Account> {
    Hub::from_env()?.whoami()
}

/// Removes the stored tokens from this machine. A token in `HF_TOKEN` stays in use, with a note.
pub fn logout() -> Result<()> {
    Hub::from_env()?.logout()
}

/// Uploads the files of `folder` to the model repository `repo` in one commit on its branch `main`.
///
/// `repo` is `owner/name`, or `name` for your own; it is created if it does not exist. Hidden files, `checkpoint-*`
/// folders and incomplete files are not uploaded. Files that the repository already has are not sent again, so after a
/// failure the same call continues where it stopped.
///
/// # Errors
/// If you are not logged in, the token lacks write permission, or the connection fails permanently. The commit is made
/// last, so the repository is then unchanged.
pub fn push_folder(repo: &str, folder: impl AsRef<Path>, options: &PushOptions) -> Result<Pushed> {
    Hub::from_env()?.push_folder(repo, folder, options)
}
