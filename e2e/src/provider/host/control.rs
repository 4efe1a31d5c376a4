//! The supervisor's commands: one line in, lines out, the last of them `ok` or `error: …`.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::service::{Service, Services, State};
use crate::cluster::Action;

/// How long a service may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a process after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// A client says its line at once.
const LINE_DEADLINE: Duration = Duration::from_secs(5);

type Shared = Rc<RefCell<Services>>;

/// A command.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Request {
    Status,
    Shutdown,
    Act(Action, String),
}

/// Takes commands at a socket. What it returns gets a message when the cluster shall end.
pub(super) fn listen(socket: &Path, services: &Shared) -> Result<mpsc::Receiver<()>> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", socket.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    let (sender, receiver) = mpsc::channel(1);
    let services = Rc::clone(services);
    tokio::task::spawn_local(async move {
        loop {
            // An error here is a lack of files or memory, which passes.
            let Ok((stream, _)) = listener.accept().await else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            tokio::task::spawn_local(talk(stream, Rc::clone(&services), sender.clone()));
        }
    });
    Ok(receiver)
}

/// One conversation. A client that goes away early has no use for an answer.
async fn talk(stream: UnixStream, services: Shared, shutdown: mpsc::Sender<()>) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read);
    if !matches!(timeout(LINE_DEADLINE, reader.read_line(&mut line)).await, Ok(Ok(_))) {
        return;
    }
    let request = parse(&line);
    let answer = match &request {
        Ok(Request::Status) => Ok(services.borrow().status()),
        Ok(Request::Shutdown) => Ok(String::new()),
        Ok(Request::Act(action, name)) => act(&services, *action, name).await.map(|()| String::new()),
        Err(error) => bail_with(error),
    };
    let text = match answer {
        Ok(text) => format!("{text}ok\n"),
        Err(error) => format!("error: {}\n", format!("{error:#}").replace('\n', " ")),
    };
    let _ = write.write_all(text.as_bytes()).await;
    let _ = write.shutdown().await;
    if matches!(request, Ok(Request::Shutdown)) {
        let _ = shutdown.send(()).await;
    }
}

fn bail_with(error: &anyhow::Error) -> Result<String> {
    bail!("{error:#}")
}

fn parse(line: &str) -> Result<Request> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["status"] => Ok(Request::Status),
        ["shutdown"] => Ok(Request::Shutdown),
        [verb, name] => {
            let actions = [Action::Kill, Action::Stop, Action::Start, Action::Pause, Action::Resume];
            match actions.into_iter().find(|action| action.word() == *verb) {
                Some(action) => Ok(Request::Act(action, (*name).to_owned())),
                None => bail!("unknown command {verb}"),
            }
        }
        _ => bail!("not a command: {}", line.trim()),
    }
}

async fn act(services: &Shared, action: Action, name: &str) -> Result<()> {
    match action {
        Action::Kill => {
            let starts = with(services, name, |service| service.starts)?;
            if !signal(services, name, Signal::SIGKILL)? {
                bail!("{name} does not run");
            }
            settled(services, name, KILL_DEADLINE, |state, now| {
                now > starts || !matches!(state, State::Running(_) | State::Ending(_))
            })
            .await
        }
        Action::Stop => {
            // A paused process would not notice SIGTERM.
            let present =
                signal(services, name, Signal::SIGTERM)? && signal(services, name, Signal::SIGCONT)?;
            with(services, name, Service::end)?;
            if !present || settled(services, name, GRACE, stopped).await.is_ok() {
                return Ok(());
            }
            signal(services, name, Signal::SIGKILL)?;
            settled(services, name, KILL_DEADLINE, stopped).await
        }
        Action::Start => {
            with(services, name, Service::resume)?;
            settled(services, name, KILL_DEADLINE, |state, _| matches!(state, State::Running(_))).await
        }
        Action::Pause | Action::Resume => {
            let which = if action == Action::Pause { Signal::SIGSTOP } else { Signal::SIGCONT };
            if !signal(services, name, which)? {
                bail!("{name} does not run");
            }
            Ok(())
        }
    }
}

fn stopped(state: State, _starts: u32) -> bool {
    state == State::Stopped
}

fn with<T>(services: &Shared, name: &str, f: impl FnOnce(&mut Service) -> T) -> Result<T> {
    let mut services = services.borrow_mut();
    let service = services.find(name).with_context(|| format!("there is no component {name}"))?;
    Ok(f(service))
}

fn signal(services: &Shared, name: &str, signal: Signal) -> Result<bool> {
    with(services, name, |service| service.signal(signal))?
}

/// Waits until a service's state and number of starts are as wanted.
async fn settled(
    services: &Shared,
    name: &str,
    deadline: Duration,
    wanted: impl Fn(State, u32) -> bool,
) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        let (state, starts) = with(services, name, |service| (service.state, service.starts))?;
        if wanted(state, starts) {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("{name} is {state:?} after {} s", deadline.as_secs());
        }
        sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;
    use crate::provider::host::plan::Service as Wanted;

    #[test]
    fn commands_are_a_word_or_two() {
        assert_eq!(parse("status\n").unwrap(), Request::Status);
        assert_eq!(parse("kill kubelet\n").unwrap(), Request::Act(Action::Kill, "kubelet".into()));
        assert!(parse("burn kubelet").unwrap_err().to_string().contains("burn"));
        parse("").unwrap_err();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_socket_answers_and_names_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let wanted = Wanted { name: "x".into(), argv: vec!["/nonexistent".into()], after: vec![] };
        let services = Rc::new(RefCell::new(Services::new(Progress::start(), &[wanted], dir.path())));
        let local = tokio::task::LocalSet::new();
        let ask = |line: &'static str| {
            let socket = socket.clone();
            tokio::task::spawn_blocking(move || crate::cluster::request(&socket, line))
        };
        local
            .run_until(async {
                let mut shutdown = listen(&socket, &services).unwrap();
                assert_eq!(ask("status").await.unwrap().unwrap(), "x waiting - 0");
                let error = ask("kill y").await.unwrap().unwrap_err().to_string();
                assert_eq!(error, "there is no component y");
                let error = ask("kill x").await.unwrap().unwrap_err().to_string();
                assert_eq!(error, "x does not run");
                ask("stop x").await.unwrap().unwrap();
                assert_eq!(ask("status").await.unwrap().unwrap(), "x stopped - 0");
                ask("shutdown").await.unwrap().unwrap();
                shutdown.recv().await.unwrap();
            })
            .await;
    }
}
