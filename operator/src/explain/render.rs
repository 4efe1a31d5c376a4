//! The explanation as text: YAML, whose comments say everything but the pod. Pure.

use roadstead_crds::status::table;

use crate::explain::decision::{Decision, Trial};
use crate::policy::words::{sentence, span};

/// The text.
pub fn text(decision: &Decision) -> Result<String, serde_yaml::Error> {
    let mut lines = vec![decision.subject.clone(), String::new()];
    lines.push(first_line(&decision.sentence()));
    lines.extend(decision.audit().as_deref().map(first_line));
    lines.push(String::new());
    lines.push("Classes, the first ones first:".to_owned());
    for (name, standing) in &decision.standings {
        lines.push(format!("  {name}: {}", sentence(standing)));
    }
    if let Some(class) = decision.status.class.as_ref().filter(|_| decision.pod.is_some()) {
        let table = table::lines(class, &decision.status.overrides);
        if !table.is_empty() {
            lines.push(String::new());
            lines.extend(table);
        }
        lines.extend(timeouts(decision));
    }
    match &decision.trial {
        Some(Trial::Refused(words)) => {
            lines.push(String::new());
            lines.push(sentence(&format!("the API server would not take the pod: {words}")));
        }
        Some(Trial::Waits(words)) => {
            lines.push(String::new());
            lines.push(sentence(&format!("the job would wait for room in a quota: {words}")));
        }
        Some(Trial::Taken(_)) => {
            lines.push(String::new());
            lines.push("The API server would take the pod, as it is below.".to_owned());
        }
        None => {}
    }
    let mut text = String::new();
    for line in lines {
        text.push_str(format!("# {line}").trim_end());
        text.push('\n');
    }
    let pod = match &decision.trial {
        Some(Trial::Taken(pod)) => Some(pod.as_ref()),
        Some(Trial::Refused(_) | Trial::Waits(_)) | None => decision.pod.as_ref(),
    };
    if let Some(pod) = pod {
        text.push_str("---\n");
        text.push_str(&serde_yaml::to_string(pod)?);
    }
    Ok(text)
}

/// Where no class takes a job a line for each of them follows, which the list of classes has too.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.len() < text.len() { sentence(line.trim_end_matches(':')) } else { line.to_owned() }
}

fn unlimited() -> String {
    "as long as the whole job".to_owned()
}

fn timeouts(decision: &Decision) -> Vec<String> {
    let Some(timeouts) = &decision.status.timeouts else { return Vec::new() };
    let (asked, allowed) = decision.asked_seconds;
    let why = allowed.map_or_else(String::new, |allowed| {
        format!(" (the job's is {}, the class's {})", span(asked), span(allowed))
    });
    vec![
        String::new(),
        "Timeouts:".to_owned(),
        format!("  the whole job        {}{why}", span(timeouts.job_seconds)),
        format!("  waiting for room     {}", span(timeouts.queue_seconds)),
        format!("  until it runs        {}", span(timeouts.start_seconds)),
        format!("  script               {}", timeouts.script_seconds.map_or_else(unlimited, span)),
        format!("  after_script         {}", timeouts.after_script_seconds.map_or_else(unlimited, span)),
        format!("  without a client     {}", span(timeouts.orphan_seconds)),
        format!("  SIGTERM to SIGKILL   {}", span(timeouts.termination_grace_seconds)),
        format!("  kept as history      {}", span(timeouts.ttl_seconds_after_finished)),
    ]
}
