//! What it costs to decide about a job where there are many classes: `cargo bench -p roadstead-operator`.
//!
//! Each class has tags, patterns for projects, refs and namespaces, and an expression. The job has a tag that all
//! classes have, so that all of it is asked of every class, and the last one takes it.
// Clippy takes only functions marked as tests for tests.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use divan::Bencher;
use roadstead_crds::{CiJob, JobClass};
use roadstead_operator::job::Identity;
use roadstead_operator::job::plan::{Current, Observed, plan, wants_room};
use roadstead_operator::policy::Images;
use roadstead_operator::policy::matching::Subject;
use roadstead_operator::policy::queue::Room;
use roadstead_operator::policy::select::{Candidate, Selection, select};
use serde_json::json;

fn main() {
    divan::main();
}

fn class(number: usize, of: usize) -> JobClass {
    let expression = format!(
        "job.pipelineSource != 'schedule' && job.tags.exists(t, t == 'common') && \
         job.ref.name.matches('^(main|release/[0-9]+)$') && job.name.startsWith('team-{number}-')"
    );
    // In the order in which they are asked, the one that takes the job is the last.
    let priority = of - number;
    serde_json::from_value(json!({
        "apiVersion": "roadstead.dev/v1alpha1", "kind": "JobClass",
        "metadata": {"name": format!("class-{number}"), "generation": 1},
        "spec": {
            "priority": priority,
            "match": {
                "tags": ["common", "linux", format!("team-{number}")],
                "projects": ["shop/**", format!("group-{number}/**"), "*/infrastructure"],
                "refs": {"names": ["main", "release/*"]},
                "namespaces": ["ci-*"],
                "expression": expression,
            },
            "resources": {"build": {"requests": {"cpu": "1", "memory": "1Gi"}, "max": {"cpu": "8", "memory": "32Gi"}}},
        },
    }))
    .unwrap()
}

fn candidates(of: usize) -> Vec<Arc<Candidate>> {
    (1..=of).map(|number| Arc::new(Candidate::new(Arc::new(class(number, of))))).collect()
}

/// A job that only the last class takes.
fn job(of: usize) -> CiJob {
    serde_json::from_value(json!({
        "apiVersion": "roadstead.dev/v1alpha1", "kind": "CiJob",
        "metadata": {"name": "cij-4711-0123456789", "namespace": "ci-jobs", "uid": "3f2a91bc-0000-4000-8000-000000000000"},
        "spec": {"request": {
            "server": "https://gitlab.example",
            "job": {"id": 4711, "name": format!("team-{of}-tests"), "stage": "test"},
            "project": {"id": 5, "path": "shop/web/checkout"},
            "ref": {"name": "main", "type": "branch", "sha": "", "protected": true},
            "pipelineSource": "push", "tags": ["common", "linux"], "tagSource": "Job",
            "image": {"name": "debian:12"},
            "overrides": {"KUBERNETES_CPU_REQUEST": "2", "KUBERNETES_MEMORY_LIMIT": "4Gi"},
            "timeoutSeconds": 3600, "requestedAt": "2026-01-02T03:04:05.000006Z",
        }},
    }))
    .unwrap()
}

/// Which class a job gets.
#[divan::bench(args = [1, 10, 100])]
fn choosing_a_class(bencher: Bencher<'_, '_>, classes: usize) {
    let (candidates, job) = (candidates(classes), job(classes));
    let choose = |job: &CiJob| select(&Subject::new(&job.spec.request, "ci-jobs"), &candidates, &mut vec![]);
    let chosen = choose(&job);
    assert!(matches!(chosen, Selection::Chosen(choice) if choice.class.name() == format!("class-{classes}")));
    bencher.bench_local(|| choose(black_box(&job)));
}

/// All of it, with the question for room: class, resources, placement, timeouts, pod and status.
#[divan::bench(args = [1, 10, 100])]
fn planning_a_job(bencher: Bencher<'_, '_>, classes: usize) {
    let job = job(classes);
    let observed = Observed {
        identity: Identity::of(&job).unwrap(),
        classes: candidates(classes),
        pods: vec![],
        current: Current::Unknown,
        selected: None,
        room: Room::Free,
        job: Arc::new(job),
    };
    let images = Images { helper: "helper".to_owned(), agent: "agent".to_owned() };
    let now = observed.job.spec.request.requested_at.0;
    assert_eq!(plan(&observed, &images, now).actions.len(), 1, "the job gets its pod");
    bencher.with_inputs(|| observed.clone()).bench_local_values(|mut observed| {
        assert!(wants_room(black_box(&mut observed)).is_some());
        plan(&observed, &images, now)
    });
}

/// Making a class ready, which happens once for each version of its spec.
#[divan::bench]
fn making_a_class_ready(bencher: Bencher<'_, '_>) {
    let class = Arc::new(class(1, 1));
    bencher.bench_local(|| Candidate::new(black_box(Arc::clone(&class))));
}
