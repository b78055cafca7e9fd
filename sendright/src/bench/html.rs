//! What was measured, as one page that needs nothing else: no network, no script, no file beside it.
//!
//! It owns the page. It must never know how anything was measured, or how a picture is drawn.

use std::fmt::Write;

use perf::run::Measured;
use perf::{Head, Surroundings};

use crate::bench::{plot, table};
use crate::output::{Failure, grouped};

/// The system's own colours, which follow the reader's choice of light or dark.
const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 96rem; padding: 0 1rem;
  background: Canvas; color: CanvasText; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; } dd { margin: 0; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } figure { flex: 1 1 26rem; margin: 0; }
figcaption { opacity: .75; } svg { width: 100%; height: auto; }
.rows { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid
  color-mix(in srgb, CanvasText 20%, Canvas); } td:first-child, th:first-child { text-align: left; }
i { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border-radius: .2em; }
";

/// The whole page.
pub fn page(
    suite: &str,
    groups: &[(String, Vec<Measured>)],
    refused: &[(Head, String)],
    rate: Option<f64>,
) -> Result<String, Failure> {
    let here = Surroundings::now();
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width\">\n");
    let title = format!("sendright bench: {suite}");
    let _ =
        write!(page, "<title>{}</title>\n<style>{STYLE}</style>\n<h1>{}</h1>\n", text(&title), text(&title));
    let commit = if here.commit.is_empty() { "not known" } else { &here.commit };
    let machine = here.machine();
    let pace = match rate {
        None => "each call begins when the one before has been answered".to_owned(),
        Some(rate) => format!("{rate} calls are due in each second; times count from when a call was due"),
    };
    let facts = [
        ("Machine", machine.as_str()),
        ("Kernel", &here.kernel),
        ("Version", &here.version),
        ("Commit", commit),
        ("Date", &here.date),
        ("Pace", &pace),
    ];
    page.push_str("<dl>");
    for (name, fact) in facts {
        let _ = writeln!(page, "<dt>{name}</dt><dd>{}</dd>", text(fact));
    }
    page.push_str(
        "</dl>\n<p>What stands together took turns in short rounds. Read the ratios: they are what ",
    );
    page.push_str("another machine will see, too.</p>\n");
    for (title, rows) in groups.iter().filter(|(_, rows)| !rows.is_empty()) {
        group(&mut page, title, rows)?;
    }
    if !refused.is_empty() {
        page.push_str("<h2>Not measured</h2>\n<ul>\n");
        for (head, why) in refused {
            let _ = writeln!(page, "<li>{}: {}</li>", text(&table::described(head)), text(why));
        }
        page.push_str("</ul>\n");
    }
    page.push_str("</html>\n");
    Ok(page)
}

fn group(page: &mut String, title: &str, rows: &[Measured]) -> Result<(), Failure> {
    let _ = write!(page, "<h2>{}</h2>\n<div class=\"plots\">", text(title));
    let pictures = [("Latency", plot::latencies(rows)?), ("Throughput", plot::throughput(rows)?)];
    for (caption, picture) in pictures {
        let _ = writeln!(page, "<figure><figcaption>{caption}</figcaption>{picture}</figure>");
    }
    page.push_str("</div>\n<div class=\"rows\"><table>\n<tr>");
    let columns = ["", "driver", "client", "p50 µs", "p99", "p99.9", "p99.99", "max", "calls/s", "× floor"];
    for column in columns {
        let _ = write!(page, "<th>{column}</th>");
    }
    page.push_str("</tr>\n");
    for (index, (name, Measured { row, .. })) in table::names(rows).iter().zip(rows).enumerate() {
        let colour = plot::colour(index);
        let _ = write!(page, "<tr><td><i style=\"background:{colour}\"></i>{}</td>", text(name));
        let (driver, client) = if row.is_floor() { ("", "") } else { (&*row.driver, &*row.client) };
        let _ = write!(page, "<td>{}</td><td>{}</td>", text(driver), text(client));
        for time_ns in [row.p50_ns, row.p99_ns, row.p999_ns, row.p9999_ns, row.max_ns] {
            let _ = write!(page, "<td>{:.2}</td>", time_ns as f64 / 1e3);
        }
        let rate = grouped(row.calls_per_s as u64);
        let _ = writeln!(page, "<td>{rate}</td><td>{:.2}</td></tr>", row.ratio);
    }
    page.push_str("</table></div>\n");
    Ok(())
}

/// What a page shows as it is.
fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use perf::{Cpus, Floor, FloorOptions, Recorder, Row, Task};

    use super::*;

    fn measured() -> Measured {
        let mut recorder = Recorder::closed();
        (1..500).for_each(|count| recorder.record(Duration::from_micros(count), 1));
        let task = Task::Floor(FloorOptions::on(Floor::PingPong, &Cpus::one().unwrap()));
        Measured { row: Row::new("quick", task.head(), &recorder, &recorder), recorder }
    }

    #[test]
    fn a_page_needs_nothing_but_itself() {
        let groups = [("two & a <half>".to_owned(), vec![measured(), measured()])];
        let page = page("quick", &groups, &[], None).unwrap();
        for foreign in ["http", "src=", "href=", "<script", "<link", "@import", "url(", "<iframe"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(page.matches("<svg").count(), 2, "latencies and throughput");
        assert!(page.contains("two &amp; a &lt;half&gt;"));
    }

    #[test]
    fn a_page_says_where_and_when_and_takes_its_colours_from_its_reader() {
        let here = Surroundings::now();
        let page = page("quick", &[("rows".to_owned(), vec![measured()])], &[], Some(500.0)).unwrap();
        for fact in [&here.machine(), &here.kernel, &here.version, here.day(), "500 calls are due"] {
            assert!(page.contains(fact), "{fact}");
        }
        assert!(page.contains("color-scheme: light dark"));
        assert!(page.contains("currentColor") && !page.contains("#000000"), "text has the page's colour");
    }

    #[test]
    fn what_was_not_measured_is_on_the_page() {
        let head = measured().row;
        let head = Head {
            name: head.name,
            driver: "uring".to_owned(),
            way: head.way,
            client: head.client,
            wait: head.wait,
            cpus: head.cpus,
            depth: 1,
            payload: 64,
            fds: 0,
        };
        let page = page("quick", &[], &[(head, "refused by <seccomp>".to_owned())], None).unwrap();
        assert!(page.contains("Not measured") && page.contains("refused by &lt;seccomp&gt;"), "{page}");
    }
}
