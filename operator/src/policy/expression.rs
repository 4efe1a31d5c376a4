//! The expression of a class's match: CEL over one job, checked when the class is seen and bounded
//! in what it can cost.
//!
//! The interpreter knows more than is let through here. What is not on the lists below is refused
//! before it is ever run: it may be slow, or something that the interpreter panics at.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::extractors::This;
use cel::parser::Parser;
use cel::{Context, ExecutionError, FunctionContext, Value, functions};
use regex::Regex;
use roadstead_crds::request::{GitRefType, JobRequest, TagSource};
use serde::Serialize;
use thiserror::Error;

use crate::policy::words::quoted;

/// Longest expression, in bytes.
const LONGEST: usize = 1024;
/// Deepest nesting. Parser and interpreter use the stack for each level.
const DEEPEST: usize = 24;
/// Most parts of an expression: what `a && b && …` and lists may come to without nesting.
const MOST_NODES: usize = 400;
/// Largest regular expression, compiled, in bytes.
const LARGEST_REGEX: usize = 64 * 1024;

/// Functions that an expression may call.
const FUNCTIONS: [&str; 7] = ["contains", "endsWith", "int", "matches", "size", "startsWith", "string"];

/// Operators that an expression may use; the last one is part of what macros become.
const OPERATORS: [&str; 20] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::INDEX,
    operators::IN,
    operators::EXISTS_ONE,
    operators::NOT_STRICTLY_FALSE,
];

/// Fields of `job`, by path.
const FIELDS: [&str; 22] = [
    "id",
    "name",
    "stage",
    "tags",
    "tagSource",
    "namespace",
    "server",
    "image",
    "pipelineId",
    "pipelineSource",
    "project",
    "project.id",
    "project.path",
    "ref",
    "ref.name",
    "ref.type",
    "ref.protected",
    "user",
    "user.id",
    "user.login",
    "runner",
    "runner.id",
];

/// An expression that can be evaluated.
#[derive(Clone, Debug)]
pub struct Expression {
    root: IdedExpr,
    patterns: Arc<Patterns>,
}

/// The patterns of an expression's `matches`, by their text: compiling one takes longer than all the rest.
type Patterns = BTreeMap<String, Regex>;

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        // The patterns are in it.
        self.root == other.root
    }
}

/// Why an expression cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ExpressionError(String);

impl ExpressionError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Expression {
    /// Parses and checks an expression.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn compile(source: &str) -> Result<Self, ExpressionError> {
        if source.len() > LONGEST {
            return Err(ExpressionError::new(format!("it is longer than {LONGEST} bytes")));
        }
        if nesting(source) > DEEPEST {
            return Err(ExpressionError::new(format!("it is nested more than {DEEPEST} levels deep")));
        }
        let parsed = quietly(|| Parser::default().parse(source))
            .ok_or_else(|| ExpressionError::new("the parser gave up on it"))?;
        let root = parsed.map_err(|errors| {
            let first = errors.errors.first();
            let what = first.map_or_else(String::new, |error| {
                format!(" at line {}, column {}: {}", error.pos.0, error.pos.1, quoted(&error.msg))
            });
            ExpressionError::new(format!("it is not CEL{what}"))
        })?;
        let mut check = Check { nodes: 0, loops: 0, names: vec![], patterns: Patterns::new() };
        check.expression(&root, 0)?;
        Ok(Self { root, patterns: Arc::new(check.patterns) })
    }

    /// Evaluates the expression for a job.
    ///
    /// # Errors
    /// Why it is neither true nor false.
    pub fn holds(&self, inputs: &Inputs) -> Result<bool, ExpressionError> {
        let context = inputs.context(&self.patterns);
        let value = quietly(|| Value::resolve(&self.root, &context))
            .ok_or_else(|| ExpressionError::new("the interpreter gave up on it"))?;
        match value {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => {
                let kind = format!("{:?}", other.type_of()).to_lowercase();
                Err(ExpressionError::new(format!("it gives a value of type {kind}, not true or false")))
            }
            Err(error) => Err(ExpressionError::new(said(&error))),
        }
    }
}

/// A job as expressions see it.
pub struct Inputs {
    job: Value,
}

impl Inputs {
    /// The job of a CiJob in a namespace. Fields that GitLab said nothing of are absent: `has()`
    /// tells, and reading one is an error, so that nothing is decided by an unknown. Only
    /// `ref.protected` is always there: what is not known to be protected is not.
    pub fn new(request: &JobRequest, namespace: &str) -> Self {
        Self { job: cel::to_value(Job::of(request, namespace)).unwrap_or(Value::Null) }
    }

    fn context(&self, patterns: &Arc<Patterns>) -> Context<'static> {
        let mut context = Context::empty();
        context.add_function("contains", functions::contains);
        context.add_function("endsWith", functions::ends_with);
        context.add_function("int", functions::int);
        let patterns = Arc::clone(patterns);
        let matches =
            move |of: &FunctionContext<'_, '_>, This(text): This<Arc<String>>, pattern: Arc<String>| {
                // Every pattern is written out, and was found there.
                let found = patterns.get(pattern.as_str());
                found.map(|regex| regex.is_match(&text)).ok_or_else(|| of.error("the pattern is not known"))
            };
        context.add_function("matches", matches);
        context.add_function("size", functions::size);
        context.add_function("startsWith", functions::starts_with);
        context.add_function("string", functions::string);
        context.add_variable_from_value("job", self.job.clone());
        context
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Job<'a> {
    id: i64,
    name: &'a str,
    stage: &'a str,
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    tag_source: Option<&'static str>,
    namespace: &'a str,
    server: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pipeline_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pipeline_source: Option<&'a str>,
    project: Project<'a>,
    #[serde(rename = "ref")]
    git_ref: Ref<'a>,
    user: User<'a>,
    runner: Runner,
}

#[derive(Serialize)]
struct Runner {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<i64>,
}

#[derive(Serialize)]
struct Project<'a> {
    id: i64,
    path: &'a str,
}

#[derive(Serialize)]
struct Ref<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    protected: bool,
}

#[derive(Serialize)]
struct User<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<&'a str>,
}

impl<'a> Job<'a> {
    fn of(request: &'a JobRequest, namespace: &'a str) -> Self {
        Self {
            id: request.job.id,
            name: &request.job.name,
            stage: &request.job.stage,
            tags: &request.tags,
            tag_source: request.tag_source.map(|source| match source {
                TagSource::Job => "Job",
                TagSource::Runner => "Runner",
            }),
            namespace,
            server: &request.server,
            image: request.image.as_ref().map(|image| image.name.as_str()),
            pipeline_id: request.pipeline_id,
            pipeline_source: request.pipeline_source.as_deref(),
            project: Project { id: request.project.id, path: &request.project.path },
            git_ref: Ref {
                name: &request.git_ref.name,
                kind: match request.git_ref.ref_type {
                    GitRefType::Branch => "branch",
                    GitRefType::Tag => "tag",
                },
                protected: request.git_ref.protected == Some(true),
            },
            user: User { id: request.user_id, login: request.user_login.as_deref() },
            runner: Runner { id: request.runner.id },
        }
    }
}

/// Walks through an expression and refuses what must not be run.
struct Check {
    nodes: usize,
    loops: usize,
    /// Names that macros introduced.
    names: Vec<String>,
    patterns: Patterns,
}

impl Check {
    fn expression(&mut self, expression: &IdedExpr, depth: usize) -> Result<(), ExpressionError> {
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            return Err(ExpressionError::new("it is too long: split it over several classes"));
        }
        if depth > DEEPEST {
            return Err(ExpressionError::new(format!("it is nested more than {DEEPEST} levels deep")));
        }
        let depth = depth + 1;
        match &expression.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if name == "job" || self.names.contains(name) => Ok(()),
            Expr::Ident(name) => {
                Err(ExpressionError::new(format!("it reads `{name}`, but only `job` is known")))
            }
            Expr::Select(select) => {
                self.expression(&select.operand, depth)?;
                match path(expression) {
                    Some(path) if !FIELDS.contains(&path.as_str()) => {
                        Err(ExpressionError::new(format!("`job` has no field `{path}`")))
                    }
                    _ => Ok(()),
                }
            }
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                if !FUNCTIONS.contains(&name) && !OPERATORS.contains(&name) {
                    return Err(ExpressionError::new(format!(
                        "it calls `{name}`, but only {} are known",
                        FUNCTIONS.join(", ")
                    )));
                }
                if name == "matches" {
                    let (text, regex) = pattern(call.args.last())?;
                    self.patterns.insert(text, regex);
                }
                let parts = call.target.as_deref().into_iter().chain(&call.args);
                parts.into_iter().try_for_each(|part| self.expression(part, depth))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|part| self.expression(part, depth)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.expression(&entry.key, depth)?;
                    self.expression(&entry.value, depth)
                }
                EntryExpr::StructField(_) => Err(ExpressionError::new("it makes an object")),
            }),
            Expr::Comprehension(each) => {
                self.expression(&each.iter_range, depth)?;
                if self.loops > 0 {
                    return Err(ExpressionError::new(
                        "it has a loop (all, exists, filter, map) in another one",
                    ));
                }
                if each.iter_var == "job" {
                    return Err(ExpressionError::new(
                        "its loop calls an item `job`, which is the job's name",
                    ));
                }
                self.loops += 1;
                let known = self.names.len();
                self.names.extend([each.iter_var.clone(), each.accu_var.clone()]);
                let parts = [&each.accu_init, &each.loop_cond, &each.loop_step, &each.result];
                let result = parts.into_iter().try_for_each(|part| self.expression(part, depth));
                self.names.truncate(known);
                self.loops -= 1;
                result
            }
            Expr::Struct(_) => Err(ExpressionError::new("it makes an object")),
            Expr::Unspecified => Err(ExpressionError::new("a part of it is missing")),
        }
    }
}

/// The path below `job` that a selection reads: `project.path`. `None`: it is not from `job`.
fn path(expression: &IdedExpr) -> Option<String> {
    match &expression.expr {
        Expr::Ident(name) if name == "job" => Some(String::new()),
        Expr::Select(select) => {
            let parent = path(&select.operand)?;
            Some(if parent.is_empty() { select.field.clone() } else { format!("{parent}.{}", select.field) })
        }
        _ => None,
    }
}

/// A regular expression has to be written out: one made of the job's own words could be anything.
fn pattern(argument: Option<&IdedExpr>) -> Result<(String, Regex), ExpressionError> {
    let Some(IdedExpr { expr: Expr::Literal(LiteralValue::String(pattern)), .. }) = argument else {
        return Err(ExpressionError::new("the pattern of `matches` has to be written out as a string"));
    };
    let built = regex::RegexBuilder::new(pattern.inner()).size_limit(LARGEST_REGEX).build();
    let regex = built.map_err(|error| {
        let words = quoted(&error.to_string());
        ExpressionError::new(format!("the pattern of `matches` is not usable: {words}"))
    })?;
    Ok((pattern.inner().to_owned(), regex))
}

/// How deep brackets and unary operators nest, without a parser.
fn nesting(source: &str) -> usize {
    let (mut depth, mut deepest, mut unary) = (0_usize, 0, 0_usize);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        // Only a run of them nests; each other one joins.
        match byte {
            b'!' | b'-' => unary += 1,
            b' ' | b'\t' | b'\n' | b'\r' => {}
            _ => unary = 0,
        }
        deepest = deepest.max(depth + unary);
    }
    // Each `?` may hold the next one.
    deepest.max(source.bytes().filter(|byte| *byte == b'?').count())
}

/// The interpreter's error, without the values of the job that it quotes at length.
fn said(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => {
            format!("the job has no `{key}`: ask with `has()` before reading it")
        }
        ExecutionError::NoSuchOverload
        | ExecutionError::UnsupportedBinaryOperator(..)
        | ExecutionError::UnsupportedUnaryOperator(..)
        | ExecutionError::ValuesNotComparable(..)
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::UnsupportedTargetType { .. } => {
            "an operator or function gets a value of a type that it does not take".to_owned()
        }
        other => quoted(&other.to_string()),
    }
}

/// Runs what should not panic, but is not ours to promise for.
fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

#[cfg(test)]
mod tests;
