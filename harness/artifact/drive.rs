//! Google Drive's pages. Drive does not serve a large file directly: a page asks for confirmation first. In: a page received
//! in place of a file, and its address. Out: the request that its form makes, or the obstacle that it reports.

use reqwest::{StatusCode, Url};

use super::page::{attribute, elements, title};

/// Why Drive does not hand the file out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error("Google Drive's quota for this file is used up: too many people fetched it; try again in a day")]
    Quota,
    #[error("Google Drive asks to log in: its owner no longer shares the file with everybody")]
    Login,
    #[error("Google Drive says that the file is infected with a virus, and hands it to nobody but its owner")]
    Virus,
    #[error("Google Drive warns that it cannot scan the file for viruses, and offers no way on")]
    Unconfirmed,
    #[error("Google Drive asks to confirm again and again")]
    Loop,
    #[error("Google Drive has no such file: it was removed, or its id is wrong")]
    Gone,
}

/// What a page of Drive says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// The large-file page: this request brings the file.
    Confirm(Url),
    Obstacle(Obstacle),
}

/// What the HTML page that `from` answered with, under `status`, says; `None` where it is no page of Drive's, or where the
/// status alone tells.
pub fn recognise(page: &str, status: StatusCode, from: &Url) -> Option<Page> {
    let text = page.to_lowercase();
    let host = from.host_str().unwrap_or_default();
    let any = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    let of_google = host.ends_with("google.com") || any(&["google drive", "accounts.google.com"]);
    if !of_google {
        return None;
    }
    let obstacle = if any(&["quota exceeded", "too many users have viewed or downloaded"]) {
        Obstacle::Quota
    } else if any(&["infected with a virus", "infected file"]) {
        Obstacle::Virus
    } else if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        // Such a page may link to anything.
        return None;
    } else if any(&["can't scan this file for viruses", "virus scan warning", "download-form"]) {
        match confirmation(page, from) {
            Some(url) => return Some(Page::Confirm(url)),
            None => Obstacle::Unconfirmed,
        }
    } else if is_gone(page, status) {
        Obstacle::Gone
    } else if host == "accounts.google.com" || any(&["accounts.google.com", "you need access", "sign in"]) {
        Obstacle::Login
    } else {
        return None;
    };
    Some(Page::Obstacle(obstacle))
}

/// By the status or the title: a number in the text may be anything.
fn is_gone(page: &str, status: StatusCode) -> bool {
    let title = title(page).unwrap_or_default().to_lowercase();
    matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
        || ["404", "not found"].iter().any(|text| title.contains(text))
}

/// The request that the page's download form makes: its action with its hidden fields (id, export, confirm, uuid). It
/// must lead to where the page came from or to Google.
fn confirmation(page: &str, from: &Url) -> Option<Url> {
    let form = elements(page, "form").find(|(form, _)| attribute(form, "id").as_deref() == Some("download-form"));
    let (form, after) = form?;
    let mut url = from.join(&attribute(form, "action")?).ok()?;
    let host = url.host_str()?;
    let trusted = host == from.host_str()?
        || [".google.com", ".googleusercontent.com"].iter().any(|domain| host.ends_with(domain));
    if !trusted || (from.scheme() == "https" && url.scheme() != "https") {
        return None;
    }
    let inside = after.split("</form").next()?;
    for (input, _) in elements(inside, "input") {
        if attribute(input, "type").as_deref() == Some("hidden")
            && let (Some(name), Some(value)) = (attribute(input, "name"), attribute(input, "value"))
        {
            url.query_pairs_mut().append_pair(&name, &value);
        }
    }
    url.query_pairs().any(|(name, _)| name == "confirm").then_some(url)
}
