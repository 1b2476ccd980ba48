"""The article's node in Python: the same task, step by step, as `jobrun.py` and the result function did it.

Restated so that it works: identity by IMDSv2, the input really fetched, the result's name defined, the instance's end
without the argument that raised. Left out: the simulated steps' sleep, and the sleep of a second before the end.
`scripts/bench` runs it; names come from the variables that `lighthpc` reads. Nothing here may be made faster or
slower than the article's calls: it is what `lighthpc` is measured against.
"""

import os
import subprocess
import sys
import tempfile
import urllib.request

import boto3

REGION = "us-east-1"
MISSION = os.environ["BENCH_MISSION"]


def imds(path):
    """Reads one value of the metadata service."""
    base = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
    asked = urllib.request.Request(
        f"{base}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "300"}
    )
    with urllib.request.urlopen(asked, timeout=5) as answer:
        token = answer.read().decode()
    asked = urllib.request.Request(f"{base}/latest/meta-data/{path}", headers={"X-aws-ec2-metadata-token": token})
    with urllib.request.urlopen(asked, timeout=5) as answer:
        return answer.read().decode()


def upload(file, bucket, key):
    """Puts the result: by boto3, or with `--aws-cli` by a child process, as the article does."""
    if "--aws-cli" not in sys.argv:
        boto3.client("s3", region_name=REGION).upload_file(file, bucket, key)
        return
    command = ["aws", "s3", "cp", "--only-show-errors", "--region", REGION, file, f"s3://{bucket}/{key}"]
    subprocess.run(command, check=True)


def tally(missions, result):
    """Counts the result in the mission's row, by read, change, and write."""
    row = missions.get_item(Key={"timePush": MISSION})["Item"]
    names, count, notified = row["rsltList"], row["transOK"], row["notifyEmail"]
    if result in names:
        return
    names.append(result)
    count = str(int(count) + 1)
    if int(count) >= int(row["transNumber"]) and notified != "Yes":
        topic = boto3.resource("sns", region_name=REGION).Topic(os.environ["LIGHTHPC_TOPIC_ARN"])
        topic.publish(Message=f"HPC mission {MISSION} accomplished.")
        notified = "Yes"
    missions.update_item(
        Key={"timePush": MISSION},
        UpdateExpression="set transOK = :succ, rsltList = :rlist, notifyEmail = :m",
        ExpressionAttributeValues={":succ": count, ":rlist": names, ":m": notified},
        ReturnValues="UPDATED_NEW",
    )


def main():
    """Does one task, from the instance's tag to the instance's end."""
    dynamodb = boto3.resource("dynamodb", region_name=REGION)
    tasks = dynamodb.Table(os.environ["LIGHTHPC_TASKS_TABLE"])
    instance_id = imds("instance-id")
    instance = boto3.resource("ec2", region_name=REGION).Instance(instance_id)
    src = next(tag["Value"] for tag in instance.tags if tag["Key"] == "srcID")

    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "input")
        boto3.client("s3", region_name=REGION).download_file(os.environ["LIGHTHPC_SOURCE_BUCKET"], src, source)
        tasks.update_item(
            Key={"srcFilename": src},
            UpdateExpression="set strIndiProgress = :u, execInstanceID = :i, timeCost = :c",
            ExpressionAttributeValues={":u": "50.0%", ":i": instance_id, ":c": "0"},
            ReturnValues="UPDATED_NEW",
        )
        result = os.path.join(folder, "rslt.dat")
        with open(result, "wb"):
            pass  # the empty workload
        bucket, key = os.environ["LIGHTHPC_RESULT_BUCKET"], f"rslt_{src}"
        upload(result, bucket, key)

    uri = f"s3://{bucket}/{key}"
    tasks.update_item(
        Key={"srcFilename": src},
        UpdateExpression="set strIndiProgress = :u, rsltFilename = :o",
        ExpressionAttributeValues={":u": "100%", ":o": uri},
        ReturnValues="UPDATED_NEW",
    )
    tally(dynamodb.Table(os.environ["LIGHTHPC_MISSIONS_TABLE"]), uri)
    instance.terminate()


if __name__ == "__main__":
    main()
