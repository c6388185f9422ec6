//! The commands in README.md and docs/ are run as they stand, in order, against a running system.
//!
//! A fenced `console` block holds commands on lines that begin with `$ `; other lines are output, shown for the reader.
//! `<!-- not run: why -->` before a block leaves it out, `<!-- fails: why -->` says that its commands must fail. Addresses
//! are those of the system under test; where kubectl is missing, its lines are left out and said so.

use std::fmt::Write as _;
use std::path::Path;

use plimsoll_e2e::Error;
use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::system::{Up, binary, workspace};

#[derive(Debug, PartialEq)]
struct Command {
    line: String,
    fails: bool,
}

fn commands(markdown: &str) -> Vec<Command> {
    let mut found = Vec::new();
    let (mut inside, mut skip, mut fails) = (false, false, false);
    for line in markdown.lines() {
        let trimmed = line.trim();
        if inside {
            if trimmed.starts_with("```") {
                (inside, skip, fails) = (false, false, false);
            } else if let Some(command) = trimmed.strip_prefix("$ ")
                && !skip
            {
                found.push(Command { line: command.to_owned(), fails });
            }
        } else if trimmed.starts_with("```console") {
            inside = true;
        } else if trimmed.starts_with("<!-- not run:") {
            skip = true;
        } else if trimmed.starts_with("<!-- fails:") {
            fails = true;
        } else if !trimmed.is_empty() {
            (skip, fails) = (false, false);
        }
    }
    found
}

#[test]
fn blocks_are_read_as_documented() {
    let text = "```console\n$ a\nout\n$ b\n```\n<!-- not run: x -->\n```console\n$ c\n```\n<!-- fails: y -->\n\n```console\n$ d\n```\n";
    let read: Vec<_> = commands(text).into_iter().map(|c| (c.line, c.fails)).collect();
    assert_eq!(read, [("a".into(), false), ("b".into(), false), ("d".into(), true)]);
}

fn script(commands: &[Command], up: &Up, kubectl: bool) -> Result<String, Error> {
    let openai = up.openai()?.trim_end_matches("/v1").trim_start_matches("http://").to_owned();
    let view = up.endpoints.view.clone().unwrap_or_default().trim_start_matches("http://").to_owned();
    let mut text = String::from("set -u\nexport COLUMNS=160\n");
    for command in commands {
        if !kubectl && command.line.contains("kubectl") {
            println!("e2e: left out, no kubectl: {}", command.line);
            continue;
        }
        let line = command.line.replace("127.0.0.1:8080", &openai).replace("127.0.0.1:8081", &view);
        let check = if command.fails { "[ $status -ne 0 ]" } else { "[ $status -eq 0 ]" };
        let _ = writeln!(
            text,
            "echo {}\n{line}\nstatus=$?\n{check} || {{ echo \"exit status $status\"; exit 1; }}",
            quote(&format!("$ {line}"))
        );
    }
    Ok(text)
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_in_readme_and_docs_work() -> Result<(), Error> {
    let mut pages = vec![workspace().join("README.md")];
    for entry in std::fs::read_dir(workspace().join("docs"))? {
        pages.push(entry?.path());
    }
    pages.retain(|p| p.extension().is_some_and(|e| e == "md"));
    pages.sort();
    for page in pages {
        let commands = commands(&std::fs::read_to_string(&page)?);
        if commands.is_empty() {
            continue;
        }
        run_page(&page, &commands).await?;
    }
    Ok(())
}

async fn run_page(page: &Path, commands: &[Command]) -> Result<(), Error> {
    // A folder like a clone's: examples beside the state that `plimsoll up` makes.
    let dir = tempfile::tempdir()?;
    std::os::unix::fs::symlink(workspace().join("examples"), dir.path().join("examples"))?;
    let state = dir.path().join(".plimsoll");
    std::fs::create_dir(&state)?;
    let up = Up::start(&state, &[]).await?;
    let kubectl = Kubectl::connect(&up.endpoints).await?;
    if !kubectl.is_real() {
        // What the left-out `kubectl apply` lines would have made.
        kubectl.apply(&workspace().join("examples")).await?;
    }
    let bin = binary()?;
    let path = format!(
        "{}:{}",
        bin.parent().ok_or("the binary has no folder")?.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let run = tokio::process::Command::new("bash")
        .args(["-c", &script(commands, &up, kubectl.is_real())?])
        .current_dir(dir.path())
        .env("PATH", path)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(420), run)
        .await
        .map_err(|_| format!("{}: its commands took longer than 420 s", page.display()))??;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("e2e: {}\n{said}", page.display());
    if !output.status.success() {
        return Err(format!("a command of {} did not do as it says:\n{said}", page.display()).into());
    }
    up.process.interrupt(20).await?;
    Ok(())
}
