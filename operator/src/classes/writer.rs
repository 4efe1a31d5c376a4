//! Writes the status of classes. Nobody else does.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::runtime::controller::{Action, ReconcileRequest};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{Config, applier};
use roadstead_crds::JobClass;
use tokio::sync::mpsc;

use crate::api::{CallError, call};
use crate::chain;
use crate::classes::{Classes, status};
use crate::policy::select::Fault;
use crate::queues::Queues;

/// How often the counts of a class are written at most.
const COUNTS_EVERY: Duration = Duration::from_secs(5);

/// How long to wait before a status that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(10);

struct Context {
    api: Api<JobClass>,
    classes: Arc<Classes>,
    faults: Mutex<HashMap<String, Fault>>,
    queues: Arc<Queues>,
    /// When the counts of a class were written last.
    counted: Mutex<HashMap<String, Instant>>,
}

/// Keeps the status of every class as it should be, until `events` end.
pub async fn write_statuses(
    api: Api<JobClass>,
    store: Store<JobClass>,
    classes: Arc<Classes>,
    events: impl Stream<Item = Event<JobClass>> + Send + 'static,
    faults: mpsc::Receiver<Fault>,
    (queues, touched): (Arc<Queues>, mpsc::UnboundedReceiver<String>),
) {
    let (noted, counted) = (Mutex::default(), Mutex::default());
    let context = Arc::new(Context { api, classes, faults: noted, queues, counted });
    let changed = {
        let (store, context) = (store.clone(), Arc::clone(&context));
        events.flat_map(move |event| {
            let changed: Vec<_> = match event {
                Event::Apply(class) => vec![ObjectRef::from_obj(&class)],
                Event::Delete(class) => {
                    context.forget(class.metadata.name.as_deref().unwrap_or_default());
                    vec![]
                }
                Event::Init | Event::InitApply(_) => vec![],
                Event::InitDone => store.state().iter().map(|class| ObjectRef::from_obj(&**class)).collect(),
            };
            stream::iter(changed)
        })
    };
    let failed = {
        let context = Arc::clone(&context);
        stream::unfold(faults, async |mut faults| faults.recv().await.map(|fault| (fault, faults))).map(
            move |fault| {
                let class = ObjectRef::new(&fault.class);
                context.note(fault);
                class
            },
        )
    };
    // Without events there is nothing to write for; faults may still be found.
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let changed = changed.chain(stream::once(async move { drop(ended) }).filter_map(async |()| None));
    let touched =
        stream::unfold(touched, async |mut touched| touched.recv().await.map(|name| (name, touched)));
    let touched = touched.map(|name| ObjectRef::new(&name));
    let others = stream::select(failed, touched).take_until(end);
    let queue = stream::select(changed.boxed(), others.boxed())
        .map(|class| Ok::<_, Infallible>(ReconcileRequest::from(class)));
    let mut results =
        pin!(applier(reconcile, on_error, context, store, queue, Config::default().concurrency(1)));
    // What went wrong was told where it did.
    while results.next().await.is_some() {}
}

impl Context {
    fn note(&self, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).insert(fault.class.clone(), fault);
    }

    fn forget(&self, class: &str) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).remove(class);
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).remove(class);
    }

    /// How long the counts of the class have to wait.
    fn pause(&self, class: &str) -> Duration {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.get(class).map_or(Duration::ZERO, |last| COUNTS_EVERY.saturating_sub(last.elapsed()))
    }

    fn counted(&self, class: &str) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.insert(class.to_owned(), Instant::now());
    }

    fn fault(&self, class: &str) -> Option<Fault> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).get(class).cloned()
    }
}

type Reconciled = Pin<Box<dyn Future<Output = Result<Action, CallError>> + Send>>;

fn reconcile(class: Arc<JobClass>, context: Arc<Context>) -> Reconciled {
    Box::pin(async move {
        let name = class.metadata.name.clone().unwrap_or_default();
        let Some(candidate) = context.classes.get(&name) else { return Ok(Action::await_change()) };
        let fault = context.fault(&name);
        let pause = context.pause(&name);
        let census = pause.is_zero().then(|| context.queues.census(&name)).flatten();
        let counting = census.is_some();
        let next = status::next(&candidate, class.status.as_ref(), fault.as_ref(), census, Timestamp::now());
        let again = if pause.is_zero() { Action::await_change() } else { Action::requeue(pause) };
        // What the candidate was made of and what is replaced have to be one version.
        if class.status.as_ref() == Some(&next)
            || candidate.class.metadata.generation != class.metadata.generation
        {
            return Ok(again);
        }
        if !candidate.problems.is_empty() {
            tracing::warn!(class = name, problems = candidate.problems.join("; "), "a JobClass is not valid");
        }
        let object = JobClass { status: Some(next), ..JobClass::clone(&class) };
        match call(context.api.replace_status(&name, &PostParams::default(), &object)).await {
            Ok(_) => {
                if counting {
                    context.counted(&name);
                }
                Ok(again)
            }
            // The change that was in the way comes through the watch.
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(Action::await_change()),
            Err(error) => {
                tracing::warn!(
                    class = name,
                    error = chain(&error),
                    "the status of a JobClass cannot be written"
                );
                Err(error)
            }
        }
    })
}

#[allow(clippy::needless_pass_by_value)] // kube's signature
fn on_error(_: Arc<JobClass>, error: &CallError, _: Arc<Context>) -> Action {
    Action::requeue(error.retry_after().map_or(AGAIN, |least| least.max(AGAIN)))
}
