//! The HTML of a report: in a real browser it fits a telephone, asks for nothing, says nothing on its console and runs nothing
//! that a record holds; its size is bounded.

mod chromium;
#[path = "../imaginary/mod.rs"]
mod imaginary;
#[path = "../skip/mod.rs"]
mod skip;

use std::path::Path;
use std::time::Instant;

use chromium::Chromium;
use imaginary::{IMAGINARY, parts, suite};
use sdclr::record::{Failure, SuiteRecord};
use sdclr::report::{Findings, Format, Report};
use serde_json::json;

/// What a hostile record may hold where a name is expected.
const HOSTILE: &str = "</title></style><script>console.log('ran')</script><img src='http://127.0.0.1:9/x' \
                       onerror=\"console.log('ran')\">\" ' & <svg onload=console.log('ran')>";

fn page(record: &SuiteRecord) -> String {
    let report = Report::of_suite(&Findings::of(record)).unwrap();
    report.files(&[Format::Html]).remove(0).text
}

/// A suite in which every text that a record takes from outside is hostile.
fn hostile() -> SuiteRecord {
    let mut record = suite(IMAGINARY, &[1, 2]);
    record.suite = HOSTILE.to_owned();
    record.invocation.overrides = vec![HOSTILE.to_owned()];
    record.failures = vec![Failure { job: HOSTILE.to_owned(), error: HOSTILE.to_owned() }];
    for result in &mut record.results {
        let (job, _) = parts(result);
        job.header.label = format!("{}{HOSTILE}", job.header.label);
        job.header.data_sha256 = HOSTILE.to_owned();
        job.header.splits_sha256.insert(HOSTILE.to_owned(), HOSTILE.to_owned());
        job.header.recipe[HOSTILE] = json!(HOSTILE);
        job.state_sha256 = HOSTILE.to_owned();
        job.sessions[0].environment.device = HOSTILE.to_owned();
        job.sessions[0].environment.git_commit = Some(HOSTILE.to_owned());
    }
    record
}

/// 60 jobs of 2,000 epochs each.
fn long() -> SuiteRecord {
    let mut record = suite("cifar10-lt", &[1, 2, 3, 4, 5]);
    let cost = |result: &sdclr::record::JobRecord| result.header().protocol;
    record
        .results
        .extend(suite("cifar10-lt", &[6]).results.into_iter().filter(|result| cost(result).is_some()).take(5));
    for result in &mut record.results {
        let (_, epochs) = parts(result);
        let first = epochs[0].clone();
        *epochs = (1..=2000)
            .map(|epoch| {
                let mut record = first.clone();
                record.epoch = epoch;
                // No two points on a line, so that nothing but thinning makes the page small.
                record.loss += (epoch as f64 * 0.7).sin() / epoch as f64;
                record.validation_accuracy = Some(60.0 + 20.0 * (epoch as f64 * 0.37).sin());
                record
            })
            .collect();
    }
    record
}

#[test]
fn a_long_suite_makes_a_small_page() {
    let record = long();
    assert_eq!(record.results.len(), 60);
    let start = Instant::now();
    let page = page(&record);
    println!("60 jobs of 2,000 epochs: {} bytes in {:.2} s", page.len(), start.elapsed().as_secs_f64());
    assert!(page.len() < 5 << 20, "{} bytes", page.len());
}

#[test]
fn nothing_of_a_record_is_markup() {
    let page = page(&hostile());
    let lower = page.to_lowercase();
    for part in ["<script", "<img", "</title></style>", "<svg onload"] {
        assert!(!lower.contains(part), "the page has {part}");
    }
    // And what was put in is there, as text: in tables, and in the legends of figures.
    assert!(page.matches("&lt;script&gt;").count() > 20);
    assert!(!page.contains("http://") || page.matches("http://127.0.0.1:9").count() == page.matches("http://").count());
}

/// Everything that stands beyond the right edge, but in a box that scrolls or in a picture.
const BEYOND: &str = "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg') \
                      && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 120))";

fn check(browser: &mut Chromium, file: &Path, width: u32) {
    browser.open(file, width);
    let place = format!("{} at {width} px", file.display());
    assert_eq!(browser.evaluate("innerWidth"), width, "{place}");
    let scrolled = browser.evaluate("document.documentElement.scrollWidth").as_u64().unwrap();
    assert!(scrolled <= u64::from(width), "{place} is {scrolled} wide");
    assert_eq!(browser.evaluate(BEYOND), json!([]), "{place}");
    assert_eq!(browser.console(), Vec::<String>::new(), "{place}");
    let asked = browser.requests();
    let outside: Vec<&String> = asked.iter().filter(|url| !url.starts_with("data:")).collect();
    assert_eq!(outside, [&format!("file://{}", file.display())], "{place}");
    let text = browser.evaluate("document.body.innerText").as_str().unwrap().to_owned();
    for word in ["Results", "Rare and frequent classes", "Where the numbers come from"] {
        assert!(text.contains(word), "{place} lacks '{word}'");
    }
    assert!(browser.evaluate("document.querySelectorAll('svg').length").as_u64() > Some(5), "{place}");
}

/// What the page looks like under a feature of the medium.
fn emulate(browser: &mut Chromium, media: &str, scheme: &str) {
    let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
    browser.call("Emulation.setEmulatedMedia", json!({ "media": media, "features": features }));
}

#[test]
fn a_browser_shows_it_whole() {
    let Some(mut browser) = Chromium::start() else {
        return skip::skip("chromium", "there is no chromium (apt-get install chromium)");
    };
    let folder = tempfile::tempdir().unwrap();
    let records = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/digits-lt-cpu");
    let status = std::process::Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .arg("report")
        .arg(&records)
        .args(["--format", "html", "--out"])
        .arg(folder.path())
        .status();
    assert!(status.unwrap().success());
    let real = folder.path().join("report.html");
    let (made_up, attack) = (folder.path().join("long.html"), folder.path().join("hostile.html"));
    sdclr::fs::write(&made_up, page(&long()).as_bytes()).unwrap();
    sdclr::fs::write(&attack, page(&hostile()).as_bytes()).unwrap();
    for width in [380, 800, 1400] {
        check(&mut browser, &real, width);
    }
    check(&mut browser, &made_up, 380);
    check(&mut browser, &attack, 380);

    browser.open(&real, 800);
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        emulate(&mut browser, "screen", scheme);
        let colours =
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg')).color]";
        grounds.push(browser.evaluate(colours));
    }
    assert_ne!(grounds[0][0], grounds[1][0], "light and dark have one background");
    assert_ne!(grounds[0][1], grounds[1][1], "the ink of figures does not follow");
    // On paper the details are shown; a printed page is white.
    let shown = "document.querySelector('details table').getBoundingClientRect().height > 0 \
                 && document.querySelector('details table').checkVisibility({ contentVisibilityAuto: true })";
    emulate(&mut browser, "screen", "light");
    assert_eq!(browser.evaluate(shown), false);
    emulate(&mut browser, "print", "dark");
    assert_eq!(browser.evaluate(shown), true);
    assert_eq!(browser.evaluate("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)");
}
