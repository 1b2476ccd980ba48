# shellcheck shell=bash
# What scripts/deploy and scripts/teardown have in common. Both source it.

program=${0##*/}

say() {
	printf '%s: %s\n' "$program" "$*" >&2
}

die() {
	printf 'scripts/%s: %s\n' "$program" "$*" >&2
	exit 1
}

misused() {
	printf 'scripts/%s: %s (--help says more)\n' "$program" "$*" >&2
	exit 2
}

# The CLI has exit codes of its own for what AWS refuses; here they are one.
finish() {
	local code=$?
	rm -rf "$work"
	((code < 3)) || exit 1
}

# Looks for the programs and the region, and makes the folder $work, which is removed at the end.
prepare() {
	command -v aws >/dev/null || die "the AWS CLI (aws) is missing; install it, or add it to PATH"
	command -v python3 >/dev/null || die "python3 is missing; install it, or add it to PATH"
	# Version 1 of the CLI reads AWS_DEFAULT_REGION alone, and version 2 would show long answers in a pager.
	region=${AWS_REGION:-${AWS_DEFAULT_REGION:-$(aws configure get region || true)}}
	[[ -n $region ]] || die "no region; set AWS_REGION, or run aws configure"
	export AWS_REGION=$region AWS_DEFAULT_REGION=$region AWS_PAGER=''
	work=$(mktemp -d)
	trap finish EXIT
}

# Sets $account and $partition.
find_account() {
	local identity
	identity=$(aws sts get-caller-identity --query '[Account,Arn]' --output text) ||
		die "no credentials that work; run aws configure, or log in again"
	account=${identity%%[[:space:]]*}
	partition=${identity#*[[:space:]]arn:}
	partition=${partition%%:*}
}

# Prints an output or a parameter of the stack, as $work/stack.json has it; nothing if there is none.
value_of() {
	python3 - "$work/stack.json" "$1" <<'PYTHON'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    stack = json.load(file)["Stacks"][0]
values = {entry["ParameterKey"]: entry.get("ParameterValue", "") for entry in stack.get("Parameters", [])}
values |= {entry["OutputKey"]: entry["OutputValue"] for entry in stack.get("Outputs", [])}
print(values.get(sys.argv[2], ""))
PYTHON
}

# Returns whether a thing is there, by the command that describes it; its output is in $work/there. Any other failure
# than "not there" ends the script.
is_there() {
	if "$@" >"$work/there" 2>"$work/error"; then
		return 0
	fi
	grep -Eq 'does not exist|NotFound|Not Found|NoSuchBucket|\(404\)' "$work/error" && return 1
	die "$1 $2 $3 failed: $(<"$work/error")"
}

# Prints the stack's status; nothing if there is none.
stack_status() {
	if is_there aws cloudformation describe-stacks --stack-name "$stack" \
		--query 'Stacks[0].StackStatus' --output text; then
		cat "$work/there"
	fi
}

# Waits until the stack's last operation is over, at most an hour; the status is in $status.
wait_for_stack() {
	local pause=1 end=$((SECONDS + 3600))
	while
		status=$(stack_status) || exit 1
		[[ $status == *_IN_PROGRESS ]]
	do
		((SECONDS < end)) || die "the stack is still $status after an hour; look at its events, then run this again"
		sleep "$pause"
		pause=5
	done
}

# Returns whether a table or a bucket bears the tag of what lighthpc's stacks make. A name alone proves nothing.
bears_mark() {
	local tag
	case $1 in
	table)
		is_there aws dynamodb describe-table --table-name "$2" || return 1
		is_there aws dynamodb list-tags-of-resource --output text --query "Tags[?Key=='lighthpc'].Value" \
			--resource-arn "arn:$partition:dynamodb:$region:$account:table/$2" || return 1
		;;
	bucket)
		is_there aws s3api get-bucket-tagging --output text --query "TagSet[?Key=='lighthpc'].Value" \
			--bucket "$2" --expected-bucket-owner "$account" || return 1
		;;
	esac
	tag=$(<"$work/there")
	[[ -n $tag && $tag != None ]]
}

# Ends the script if the stack is not lighthpc's: its template begins with our name, in every version.
refuse_other_stack() {
	local description
	description=$(aws cloudformation describe-stacks --stack-name "$stack" --output text \
		--query 'Stacks[0].Description')
	[[ $description == lighthpc:* ]] ||
		die "the stack $stack is not lighthpc's, and stays as it is (its description: $description); look at --stack"
}
